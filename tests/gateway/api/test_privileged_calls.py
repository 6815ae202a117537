"""What changes who may do what, or cannot be taken back, is never decided on groups from a cache."""

from fastapi.routing import APIRoute

from gateway.api import enrolment_calls, evacuation_calls, policy_calls, prune_calls
from gateway.api.desk import person_of, privileged_person_of

ROUTERS = (enrolment_calls.router, evacuation_calls.router, policy_calls.router, prune_calls.router)


def test_calls_by_which_a_person_changes_something_read_the_groups_anew() -> None:
    found = []
    for route in [route for router in ROUTERS for route in router.routes]:
        assert isinstance(route, APIRoute)
        asked = {dependency.call for dependency in route.dependant.dependencies} & {person_of, privileged_person_of}
        if asked and route.methods != {"GET"}:
            found.append(route.path)
            assert asked == {privileged_person_of}, route.path
    assert sorted(found) == [
        "/v1/enrolment/tokens",
        "/v1/evacuations",
        "/v1/evacuations/{evacuation_id}/withdraw",
        "/v1/hosts/{name}/revocation",
        "/v1/log/prune",
        "/v1/policy/publications",
        "/v1/policy/shadow",
        "/v1/policy/shadow",
        "/v1/rollovers/{what}/{step}",
    ]
