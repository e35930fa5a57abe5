"""Models: references, folders, tokenizers, chat templates, loading, adapters, and bringing a model here from the hub.

What a model says to a question is asked in `teachers` and `assessment`."""

from primekd.models.chat import TEXT, Priming, Prompt, build_prompt, decode_response, encode_response, join, text_prompt
from primekd.models.download import gigabytes, recorded
from primekd.models.folders import is_present, model_folder, model_hash, quantisation, weights_hash
from primekd.models.hub import has_token
from primekd.models.loading import load_model, refuse_too_long
from primekd.models.reference import ModelReference, parse_reference, require_local
from primekd.models.shapes import BYTES, GIB, Model, find_shape, stated_bits
from primekd.models.template import QUESTION, turn_end
from primekd.models.tokenizers import load_tokenizer, require_same_tokenizer, template_hash, tokenizer_hash
