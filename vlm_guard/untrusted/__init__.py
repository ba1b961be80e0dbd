"""What comes from strangers: JSON, pictures, file names and words to print, each read by one reader.

A reader here gives the right value or raises a ValueError of one line that names the file and the record.

May import: no other room, so that every room may use it.
"""
