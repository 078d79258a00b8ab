"""What a folder holds: the dataset that it is, the keys of `data:` that read it, and the reason for each.

- `discover`: the kinds in their order, from the most specific to plain images. `found`: what is found.
- `stray_folders`: the files that are searched. `neighbors`: the folder next to one that belongs to it.
- `known_layouts`, `annotation_files`, `tables`, `mask_folders`, `image_folders`: one kind each.
"""
