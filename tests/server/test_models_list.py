"""The list of models through the ``openai`` client."""

from .tiny import Live


def test_every_name_that_a_request_may_give_is_listed(server: Live) -> None:
    listed = server.client.models.list().data
    assert [one.id for one in listed] == ["tiny", "deepseek-chat", "deepseek-reasoner", "hash-encoder"]
    assert {one.owned_by for one in listed} == {"deepwell"}
    roots = [one.model_dump()["root"] for one in listed]
    assert roots == ["tiny", "tiny", "tiny", "hash-encoder"]
    assert [one.model_dump()["max_model_len"] for one in listed] == [512, 512, 512, None]


def test_one_can_be_looked_at(server: Live) -> None:
    assert server.client.models.retrieve("deepseek-chat").id == "deepseek-chat"
