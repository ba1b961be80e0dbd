"""What comes from strangers: JSON, pictures, file names and words to print, each read by one reader.

A reader here gives the right value or raises a ValueError of one line that names the file and the record. Every
room may use it.

May import: nothing else of this project.
"""
