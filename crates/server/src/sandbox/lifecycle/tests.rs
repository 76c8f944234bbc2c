use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Request(Request),
    Fact(Fact),
}

fn box_fact() -> impl Strategy<Value = BoxFact> {
    prop::sample::select(vec![
        BoxFact::Starting,
        BoxFact::Running,
        BoxFact::Stopping,
        BoxFact::Stopped,
        BoxFact::Failed,
        BoxFact::Gone,
        BoxFact::Missing,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let generation = (1u64..4).prop_map(Generation);
    prop_oneof![
        2 => Just(Step::Request(Request::Start)),
        2 => Just(Step::Request(Request::Stop)),
        1 => Just(Step::Request(Request::Park)),
        1 => any::<bool>().prop_map(|forget| Step::Request(Request::Delete { forget })),
        3 => Just(Step::Fact(Fact::Placed)),
        12 => (generation.clone(), box_fact()).prop_map(|(generation, fact)| Step::Fact(Fact::Box { generation, fact })),
        1 => Just(Step::Fact(Fact::RunnerLost)),
        1 => Just(Step::Fact(Fact::AgentSilent)),
        1 => generation.clone().prop_map(|generation| Step::Fact(Fact::AgentHeard { generation })),
        1 => generation.prop_map(|generation| Step::Fact(Fact::Moved { generation })),
        1 => Just(Step::Fact(Fact::Overdue)),
    ]
}

fn apply(sandbox: &mut Lifecycle, step: Step) {
    match step {
        Step::Request(request) => {
            let _ = sandbox.request(request);
        }
        Step::Fact(fact) => {
            sandbox.fact(fact);
        }
    }
}

/// A runner that does what it is told, until nothing changes.
fn settle(sandbox: &mut Lifecycle) {
    for _ in 0..8 {
        if sandbox.observed == State::Pending {
            sandbox.fact(Fact::Placed);
        }
        let fact = match sandbox.wanted() {
            Some(Wanted::Running) => BoxFact::Running,
            Some(Wanted::Stopped) => BoxFact::Stopped,
            Some(Wanted::Absent) => BoxFact::Gone,
            None => return,
        };
        let generation = sandbox.generation;
        sandbox.fact(Fact::Box { generation, fact });
    }
}

proptest! {
    #[test]
    fn every_state_has_a_way_to_running_and_to_deleted(steps in prop::collection::vec(step(), 0..40)) {
        let mut sandbox = Lifecycle::new();
        for step in steps {
            apply(&mut sandbox, step);
        }
        let mut other = sandbox;
        if sandbox.request(Request::Start).is_ok() && sandbox.observed != State::Deleted {
            settle(&mut sandbox);
            prop_assert_eq!(sandbox.observed, State::Running);
        }
        other.request(Request::Delete { forget: false }).expect("delete works from every state");
        settle(&mut other);
        prop_assert_eq!(other.observed, State::Deleted);
    }

    #[test]
    fn stop_reaches_stopped_from_every_state(steps in prop::collection::vec(step(), 0..40)) {
        let mut sandbox = Lifecycle::new();
        for step in steps {
            apply(&mut sandbox, step);
        }
        if sandbox.request(Request::Stop).is_ok() && sandbox.observed != State::Deleted {
            settle(&mut sandbox);
            prop_assert_eq!(sandbox.observed, State::Stopped);
        }
    }

    #[test]
    fn a_stale_generation_changes_nothing(steps in prop::collection::vec(step(), 0..40), fact in box_fact()) {
        let mut sandbox = Lifecycle::new();
        for step in steps {
            apply(&mut sandbox, step);
        }
        let before = sandbox;
        let stale = Generation(sandbox.generation.0 - 1);
        let mut effects = sandbox.fact(Fact::Box { generation: stale, fact });
        effects.extend(sandbox.fact(Fact::AgentHeard { generation: stale }));
        effects.extend(sandbox.fact(Fact::Moved { generation: stale }));
        prop_assert_eq!(effects, vec![]);
        prop_assert_eq!(sandbox, before);
    }

    #[test]
    fn deleted_is_final_and_deletion_is_never_undone(steps in prop::collection::vec(step(), 0..40), more in prop::collection::vec(step(), 0..40)) {
        let mut sandbox = Lifecycle::new();
        for step in steps {
            apply(&mut sandbox, step);
        }
        sandbox.request(Request::Delete { forget: false }).expect("delete works from every state");
        for step in more {
            apply(&mut sandbox, step);
            prop_assert!(matches!(sandbox.observed, State::Deleting | State::Deleted));
            prop_assert_eq!(sandbox.desired, Desired::Deleted);
        }
    }

    #[test]
    fn a_repeated_request_changes_nothing_more(steps in prop::collection::vec(step(), 0..40)) {
        let mut sandbox = Lifecycle::new();
        for step in steps {
            apply(&mut sandbox, step);
        }
        for request in [Request::Start, Request::Stop, Request::Delete { forget: false }] {
            let mut once = sandbox;
            let _ = once.request(request);
            let mut twice = once;
            let _ = twice.request(request);
            prop_assert_eq!(once, twice);
        }
    }

    #[test]
    fn generations_only_grow(steps in prop::collection::vec(step(), 0..60)) {
        let mut sandbox = Lifecycle::new();
        for step in steps {
            let before = sandbox.generation;
            apply(&mut sandbox, step);
            prop_assert!(sandbox.generation >= before);
        }
    }
}

#[test]
fn a_rebooted_machine_leaves_its_sandboxes_stopped() {
    let mut sandbox = running();
    sandbox.fact(Fact::RunnerLost);
    assert_eq!(sandbox.observed, State::Lost);
    sandbox.fact(Fact::Box { generation: Generation(1), fact: BoxFact::Stopped });
    assert_eq!((sandbox.desired, sandbox.observed), (Desired::Stopped, State::Stopped));
}

#[test]
fn a_lost_sandbox_comes_back_with_its_runner() {
    let mut sandbox = running();
    sandbox.fact(Fact::AgentSilent);
    assert_eq!(sandbox.observed, State::Lost);
    sandbox.fact(Fact::AgentHeard { generation: Generation(1) });
    assert_eq!(sandbox.observed, State::Running);
}

#[test]
fn a_sandbox_that_ran_and_vanished_is_failed_and_not_made_anew() {
    let mut sandbox = running();
    assert_eq!(sandbox.fact(Fact::Box { generation: Generation(1), fact: BoxFact::Missing }), [Effect::FailJob]);
    assert_eq!(sandbox.observed, State::Failed);
}

fn running() -> Lifecycle {
    let mut sandbox = Lifecycle::new();
    sandbox.fact(Fact::Placed);
    sandbox.fact(Fact::Box { generation: Generation(1), fact: BoxFact::Running });
    assert_eq!(sandbox.observed, State::Running);
    sandbox
}
