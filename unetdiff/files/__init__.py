"""The one door for files: every module that lists, reads, writes or deletes a file calls these.

- `folders`: sorted listings without hidden files, and paths that stay inside their dataset.
- `texts`: UTF-8 text and lists of names.
- `records`: JSON, JSON lines and YAML, read strictly, and written without NaN.
- `typed`: values of records checked against type hints, with file and key in the message.
- `tables`: CSV.
- `images`: decoding by an explicit list of formats, with a bound on the number of pixels; saving.
- `archives`: tar files, unpacked inside a folder.
- `tensors`: safetensors, whose header is checked before memory is taken.
- `writing`: atomic files and directories, the check that an output can be written, leftovers of a killed process.
- `locks`: one process per run directory.

Only regular files are opened, so a named pipe does not block. Every failure is a `FileError` (a `UserError`): one line
with the path, the reason and the remedy. A library that opens a file for itself (of a video, a parquet file, a text
encoder) is called inside `writing.file_errors`, after `folders.regular_file`.
"""
