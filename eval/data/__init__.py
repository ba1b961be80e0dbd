"""Pictures and what is in them: MSCOCO folders, the drawn scenes, and lists of pictures.

May import: the guard and below, eval.scenes.
"""
