"""A Word document's pictures, described by docling through an OpenAI base URL; run where docling is installed.

Arguments: the URL of the chat completions, a directory to write into, a question, and the pictures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from docling.datamodel.base_models import InputFormat
from docling.datamodel.pipeline_options import ConvertPipelineOptions, PictureDescriptionApiOptions
from docling.document_converter import DocumentConverter, WordFormatOption
from docx import Document

url, directory, question, *pictures = sys.argv[1:]
document = Document()
for picture in pictures:
    document.add_paragraph(f"The next figure is {Path(picture).stem}.")
    document.add_picture(picture)
path = Path(directory) / "figures.docx"
document.save(str(path))

describing = PictureDescriptionApiOptions(
    url=url,
    params={"model": "any", "max_completion_tokens": 16},
    prompt=question,
    picture_area_threshold=0.0,
)
options = ConvertPipelineOptions(
    enable_remote_services=True, do_picture_description=True, picture_description_options=describing
)
converter = DocumentConverter(format_options={InputFormat.DOCX: WordFormatOption(pipeline_options=options)})
found = converter.convert(path).document.pictures
json.dump([picture.meta.description.text for picture in found], sys.stdout)
