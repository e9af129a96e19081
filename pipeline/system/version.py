"""The version of trainyard: here and in CHANGELOG.md and CITATION.cff, which a test compares."""

VERSION = "0.1.0"
