"""The store: nobody's job is lost, drawn twice, or kept behind somebody else's fifty; both databases."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from sqlalchemy import text

from ppvilg.serving.errors import ServiceError
from ppvilg.serving.store import QueueLimits, Store, claims, gallery, jobs, keys, sqlite_url, workers
from ppvilg.serving.store.jobs import new_id


def submit(store, owner="a", pictures=1, limits=None, **more):
    request = {"num_images": pictures, "seed": 1, "num_inference_steps": 2}
    with store.writing() as connection:
        return jobs.submit(connection, owner, "v1", request, limits or QueueLimits(), **more)


def draw(store, worker, job, content="0" * 64):
    for index in range(job.wanted):
        row = {
            "id": new_id(),
            "job": job.id,
            "owner": job.owner,
            "index": index,
            "sha256": content,
            "bytes": 1000,
            "width": 64,
            "height": 64,
            "seed": index,
            "settings": {},
            "model": {"name": "m", "hash": "h"},
            "created": time.time(),
            "expires": None,
        }
        assert claims.add_picture(store, worker, row)


def state(store, job):
    return jobs.find(store, None, job.id).state


def test_owners_take_turns(store):
    many = [submit(store, "many") for _ in range(50)]
    one = submit(store, "one")
    order = jobs.queue(store).order
    assert order.index(one.number) == 1  # behind the first of the fifty, which came earlier
    first = claims.claim(store, "w", room=4, idle=True)
    assert [job.owner for job in first] == ["many", "one", "many", "many"]
    late = submit(store, "late", pictures=3)
    assert claims.claim(store, "w", room=1, idle=False)[0].id == late.id  # nothing of theirs is being drawn
    assert state(store, many[49]) == "queued"


def test_newcomers_only_takes_nobody_who_is_served(store):
    submit(store, "many", pictures=5)
    submit(store, "many")
    assert len(claims.claim(store, "w", room=5, idle=True)) == 1
    assert claims.claim(store, "w", room=5, idle=False, newcomers_only=True) == []
    other = submit(store, "other")
    assert [job.id for job in claims.claim(store, "w", 5, False, newcomers_only=True)] == [other.id]


def test_every_job_is_claimed_once(store):
    submitted = {submit(store, f"owner {number % 7}").id for number in range(120)}
    taken: list[str] = []

    def work(name):
        while claimed := claims.claim(store, name, room=5, idle=True):
            taken.extend(job.id for job in claimed)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    while more := claims.claim(store, "last", room=5, idle=True):  # a lock that was skipped may have left some
        taken.extend(job.id for job in more)
    assert Counter(taken) == Counter(submitted)


def test_a_dead_workers_job_is_drawn_again_alone_and_fails_after_its_attempts(store):
    poisoned, innocent = submit(store, "a"), submit(store, "b")
    assert len(claims.claim(store, "w0", room=8, idle=True)) == 2
    for attempt in range(2, claims.MAX_ATTEMPTS + 1):
        claims.give_up_leases(store, f"w{attempt - 2}")
        claimed = claims.claim(store, f"w{attempt - 1}", room=8, idle=True)
        assert [job.id for job in claimed] == [poisoned.id]  # and no other with it
        assert claimed[0].attempts == attempt
    claims.give_up_leases(store, f"w{claims.MAX_ATTEMPTS - 1}")
    claimed = claims.claim(store, "w", room=8, idle=True)
    assert [job.id for job in claimed] == [innocent.id]
    ended = jobs.find(store, "a", poisoned.id)
    assert (ended.state, ended.error_code) == ("failed", "attempts")
    draw(store, "w", claimed[0])
    assert state(store, innocent) == "done"


def test_a_suspect_waits_until_its_worker_is_idle(store):
    submit(store, "a")
    claims.claim(store, "w0", room=8, idle=True)
    claims.give_up_leases(store, "w0")
    assert claims.claim(store, "w1", room=8, idle=False) == []
    assert len(claims.claim(store, "w1", room=8, idle=True)) == 1


def test_who_lost_a_job_cannot_end_it(store):
    job = submit(store)
    claims.claim(store, "slow", room=1, idle=True, lease=-1)
    again = claims.claim(store, "fast", room=1, idle=True)
    assert again[0].id == job.id
    assert claims.report(store, "slow", [job.id], {}) == {}
    assert not claims.end(store, "slow", job.id, "internal", "late")
    draw(store, "fast", again[0])
    assert state(store, job) == "done"
    assert len(gallery.of_jobs(store, [job.id])[job.id]) == 1


def test_pictures_of_an_earlier_attempt_are_kept(store):
    submit(store, pictures=2)
    [job] = claims.claim(store, "w0", room=2, idle=True)
    row = {"id": new_id(), "job": job.id, "owner": "a", "index": 0, "sha256": "1" * 64, "bytes": 1, "width": 1,
           "height": 1, "seed": 0, "settings": {}, "model": {}, "created": 1.0, "expires": None}
    assert claims.add_picture(store, "w0", row)
    claims.give_up_leases(store, "w0")
    [job] = claims.claim(store, "w1", room=2, idle=True)
    assert claims.finished_places(store, job.id) == {0}
    draw(store, "w1", job)
    assert [picture.sha256[0] for picture in gallery.of_jobs(store, [job.id])[job.id]] == ["1", "0"]


def test_handing_back_costs_no_attempt(store):
    job = submit(store)
    for _ in range(claims.MAX_ATTEMPTS + 2):
        [claimed] = claims.claim(store, "w", room=1, idle=True)
        assert claimed.attempts == 1
        assert claims.release(store, "w") == 1
    assert state(store, job) == "queued"


def test_cancel(store):
    waiting, drawn, foreign = submit(store), submit(store), submit(store, "b")
    claims.claim(store, "w", room=1, idle=True)
    assert jobs.cancel(store, "a") == 2
    assert state(store, drawn) == "cancelled"
    assert claims.report(store, "w", [waiting.id], {})[waiting.id].cancel
    assert claims.end(store, "w", waiting.id, None)
    assert (state(store, waiting), state(store, foreign)) == ("cancelled", "queued")
    assert jobs.cancel(store, "a") == 0


def test_a_retry_finds_its_unfinished_job(store):
    first = submit(store, retry_key="same", attach_after=0)
    assert submit(store, retry_key="same", attach_after=0).id == first.id
    assert submit(store, owner="b", retry_key="same", attach_after=0).id != first.id
    assert submit(store, retry_key="same").id != first.id
    jobs.cancel(store, "a", [first.id])
    assert submit(store, retry_key="other", attach_after=0).id != first.id


def test_the_queue_has_an_end(store):
    limits = QueueLimits(total=3, per_owner=2)
    submit(store, limits=limits), submit(store, limits=limits)
    with pytest.raises(ServiceError, match="too many jobs"):
        submit(store, limits=limits)
    submit(store, "b", limits=limits)
    with pytest.raises(ServiceError) as caught:
        submit(store, "c", limits=limits)
    assert caught.value.status == 429


def test_keys_are_kept_as_hashes_and_limits_hold(store):
    ak, sk = keys.new_key(store, "class 7b", pictures_per_day=5, requests_per_minute=3)
    key = keys.key_of(store, sk=sk)
    assert (key.ak, keys.key_of(store, sk=sk, ak=ak), keys.key_of(store, sk=ak)) == (ak, key, None)
    with store.reading() as connection:
        assert sk not in str(connection.execute(text("SELECT * FROM keys")).all())
    with pytest.raises(ValueError, match="class 7b"):
        keys.new_key(store, "class 7b")

    def spend(pictures):
        with store.writing() as connection:
            keys.spend(connection, "key:" + ak, key, pictures)

    spend(4)
    with pytest.raises(ServiceError) as caught:
        spend(2)
    assert caught.value.code == "quota"
    spend(1)  # what was refused was not counted
    spend(0)
    with pytest.raises(ServiceError) as caught:
        spend(0)
    assert caught.value.code == "rate" and 0 < caught.value.retry_after <= 60
    keys.revoke_key(store, "class 7b")
    assert keys.key_of(store, sk=sk) is None


def test_room_is_made_from_the_oldest_and_shared_files_stay(store):
    for content in ("1", "2", "1", "3"):
        submit(store)
        [job] = claims.claim(store, "w", room=1, idle=True)
        draw(store, "w", job, content * 64)
    assert gallery.make_room(store, 4000) == set()
    assert gallery.make_room(store, 2500) == {"2" * 64}  # the first "1" went too, but the third picture is the same
    assert [picture.sha256[0] for picture in gallery.page(store, "a", 10, None)] == ["3", "1"]


def test_what_has_expired_goes(store):
    job = submit(store)
    [claimed] = claims.claim(store, "w", room=1, idle=True)
    draw(store, "w", claimed)
    assert gallery.expire(store, time.time() + 5, keep_seconds=100) == (set(), [])
    assert gallery.expire(store, time.time() + 200, keep_seconds=100) == (set(), [job.id])


def test_workers_say_what_they_do(store):
    workers.announce(store, "w", "loading", 1.0, loading={"what": "weights", "fraction": 0.5})
    workers.announce(store, "w", "ready", 1.0, "hash", None, 0.03)
    [present] = workers.present(store)
    assert (present.state, present.seconds_per_step) == ("ready", 0.03)
    workers.leave(store, "w")
    assert workers.present(store) == []


def test_servers_that_start_together_share_one_migration(postgres_url):
    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(Store(postgres_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(stores) == 4


def test_a_store_of_a_newer_ppvilg_is_refused(tmp_path):
    url = sqlite_url(tmp_path / "s.sqlite")
    with Store(url).writing() as connection:
        connection.execute(text("UPDATE versions SET version = 99"))
    with pytest.raises(ValueError, match="version 99"):
        Store(url)


@pytest.mark.parametrize("url", ["mysql://x", "nonsense", "sqlite:////nowhere/at/all.sqlite"])
def test_a_database_that_cannot_be_used_is_named(url):
    with pytest.raises(ValueError, match="database"):
        Store(url)
