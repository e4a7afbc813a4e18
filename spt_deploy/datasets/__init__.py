"""Data sets as people have them on disk: told apart, read, checked, and written again. Nothing here knows of torch.

`formats` tells which one a folder is; a module for each (`coco_json`, `yolo`, `voc_xml`, `bdd_json`, `image_folder`)
reads it into a `dataset`; `scene` is an image of it once opened; `rewrite` writes a part of one, or pads it.
"""
