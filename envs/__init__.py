"""Gymnasium environments. Importing this package registers them as `tdraft/...`."""

from gymnasium.envs.registration import register, registry

for _name, _entry, _vector in (
    ("Draft", "tdraft.envs.decoding.draft:DraftEnv", "tdraft.envs.decoding.vector:DraftVectorEnv"),
    ("Accept", "tdraft.envs.decoding.accept:AcceptEnv", None),
):
    if f"tdraft/{_name}-v0" not in registry:
        register(f"tdraft/{_name}-v0", entry_point=_entry, vector_entry_point=_vector)
