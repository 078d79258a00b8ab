"""Images with masks: a small reader for each kind of annotation, all behind `reader.MaskReader`.

- `reader`: the interface. `dataset`: the dataset that is made of a reader.
- `pairs`, `encodings`, `color_tables`, `classes`: mask files, and what their values mean.
- `folders`, `globs`, `splits`: any two folders; cityscapes and ade20k are presets of them. `voc`: VOC's layout.
- `build`: from a config to a reader.
"""
