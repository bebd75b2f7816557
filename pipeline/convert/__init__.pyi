from .convert import convert_shards as convert_shards
from .inspection import inspect_path as inspect_path
from .inspection import render_inspection as render_inspection
from .inspection import render_total as render_total
from .ranges import cast_rows as cast_rows
from .verify import verify_store as verify_store
