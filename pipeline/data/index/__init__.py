"""The index of a data set: where each image lies, found once by a scan and mapped into memory."""
