"""What may be set for a run that a server answers, and what only a model in this process could follow."""

from urllib.parse import urlsplit

from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.untrusted.printed_text import shown

# The settings that nobody would follow, and why.
_REFUSED = {
    "model": "the server has its model loaded; --endpoint-model chooses among several",
    "options": "a server declares its methods with their settings (vlm-guard serve --methods 'strict=pai:gain=0.5')",
    "template": "the server puts prompts into its own chat template",
    "batch_size": "every prompt is a request of its own; --concurrency says how many wait at once",
    "dtype": "the server has loaded the weights",
    "device": "the server has loaded the weights",
    "device_map": "the server has loaded the weights",
    "attention_backend": "the server computes attention",
    "pack_weights": "the server has the weights",
    "revision": "the server has loaded the weights",
    "trust_remote_code": "no model is loaded here",
}
_ONLY_HERE = ("endpoint_model", "concurrency", "request_timeout")
_ENDING = "/chat/completions"


def check_settings(settings: RunSettings, processes: int) -> None:
    """Refuse settings that would change nothing, beside `--endpoint` or without it.

    Args:
        settings: of the run.
        processes: how many share it.

    Raises:
        ValueError: there is one; the message says why and what to give instead.
    """
    given = settings.model_fields_set
    if settings.endpoint is None:
        idle = next((name for name in _ONLY_HERE if name in given), None)
        if idle is not None:
            raise ValueError(f"{_flag(idle)} is for a server's answers; give --endpoint URL, too")
        return
    for name, reason in _REFUSED.items():
        default = RunSettings.model_fields[name].get_default(call_default_factory=True)
        if name in given and getattr(settings, name) != default:
            origin = f" (from --protocol {settings.protocol})" if settings.protocol and name == "template" else ""
            raise ValueError(f"{_flag(name)}{origin} cannot be used beside --endpoint: {reason}")
    if settings.decoding.num_beams > 1:
        raise ValueError("--num-beams cannot be used beside --endpoint: chat servers have no beam search")
    if processes > 1:
        raise ValueError(
            f"--endpoint with {processes} processes: one is enough, --concurrency says how many requests wait at once"
        )


def base_address(given: str) -> str:
    """The address that `/chat/completions` is put behind; `/v1` is added where the given one has no path.

    Raises:
        ValueError: it is no address of a server, or holds a password or a key.
    """
    example = "give an address such as http://localhost:8000/v1"
    try:
        parts = urlsplit(given.strip())
        parts.port  # noqa: B018 - reading it checks it
    except ValueError as error:
        raise ValueError(f"--endpoint is no address ({error}); {example}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("--endpoint holds a name or password, which would get into results; give the address alone")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--endpoint {shown(given)} is no address of a server; {example}")
    if parts.query or parts.fragment:
        raise ValueError(f"--endpoint has something behind '?' or '#', which would get into results; {example}")
    path = parts.path.rstrip("/").removesuffix(_ENDING).rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _flag(name: str) -> str:
    extra = RunSettings.model_fields[name].json_schema_extra
    flag = extra.get("flag") if isinstance(extra, dict) else None
    return str(flag) if flag else f"--{name.replace('_', '-')}"
