from srl.driver.policy_versions import PolicyVersions


def test_a_policy_that_is_sent_again_is_as_old_as_before():
    versions = PolicyVersions()
    for changed in (False, True, False, True):
        versions.next(changed)
        versions.arrived()
    assert (versions.newest, versions.update) == (4, 2)
    assert versions.ages() == {1: 2, 2: 1, 3: 1, 4: 0}


def test_until_weights_have_arrived_those_before_are_what_the_workers_hold():
    versions = PolicyVersions()
    versions.next(False)
    versions.arrived()
    versions.next(True)
    assert versions.ages() == {1: 0, 2: 1}  # some workers may sample with 2 already
    versions.arrived()
    assert versions.ages() == {1: 1, 2: 0}


def test_an_update_that_was_lost_on_its_way_is_one_away_and_the_next_is_its_successors():
    versions = PolicyVersions()
    for changed in (False, True):
        versions.next(changed)
        versions.arrived()
    versions.next(True)  # 3 never arrives: the learners die, and go on from the update that 2 carried
    versions.next(False)
    versions.arrived()
    assert versions.ages() == {1: 1, 2: 0, 3: 1, 4: 0}


def test_versions_that_others_took_are_not_given_again():
    versions = PolicyVersions()
    versions.go_on_after(7)
    assert versions.next(True) == 8
    versions.go_on_after(5)
    assert versions.next(True) == 9
