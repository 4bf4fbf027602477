"""Requests that are made up from the OpenAPI description: none is answered with a server error."""

import hypothesis
import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")

from schemathesis.checks import not_a_server_error  # noqa: E402


@pytest.fixture(scope="module")
def description(serve):
    with serve(max_characters=20, max_voices=3) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_no_request_is_a_server_error(description):
    operations = [operation.ok() for operation in description.get_all_operations()]
    assert len(operations) == 8
    for operation in operations:
        check(operation.as_strategy())


def check(requests):
    """Sends made-up requests of one route."""

    @hypothesis.given(requests)
    @hypothesis.settings(max_examples=15, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    def answer(request):
        request.call_and_validate(checks=[not_a_server_error])

    answer()
