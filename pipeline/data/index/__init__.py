"""Where each image of a data set lies, found once by a scan and mapped into memory."""
