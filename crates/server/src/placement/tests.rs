use proptest::prelude::*;

use super::*;
use crate::sandbox::spec::Content;

fn spec() -> impl Strategy<Value = Spec> {
    (1u32..5000, 1u64..1000, 0u64..1000, any::<bool>(), any::<bool>(), 0usize..4).prop_map(
        |(cpu_millis, memory_bytes, disk_bytes, nat, require_limits, target)| Spec {
            template: "host".into(),
            cpu_millis,
            memory_bytes,
            disk_bytes,
            pids: 100,
            network: if nat { Network::Nat } else { Network::None },
            env: BTreeMap::new(),
            workdir: String::new(),
            user: String::new(),
            ttl_secs: 0,
            lease_secs: 0,
            require_limits,
            skip_services: false,
            auto_stop_mins: 0,
            locality: Locality::Any,
            content: [None, content("/srv/a/project"), content("/srv/ab")][cpu_millis as usize % 3].clone(),
            target: ["", "", "r1", "zone=a"][target].into(),
        },
    )
}

fn content(directory: &str) -> Option<Content> {
    Some(Content { directory: directory.to_owned(), branch: String::new(), reset_branch: false })
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let room = || {
        (0u64..8000, 0u64..2000, 0u64..2000, 0u64..4).prop_map(|(cpu_millis, memory_bytes, disk_bytes, sandboxes)| {
            Room { cpu_millis, memory_bytes, disk_bytes, sandboxes }
        })
    };
    (room(), room(), any::<[bool; 6]>(), 0u8..3).prop_map(
        |(capacity, used, [connected, open, template, nat, limits, zone], name)| Candidate {
            id: RunnerId::random(),
            name: format!("r{name}"),
            local: zone,
            connected,
            open,
            labels: if zone { [("zone".to_owned(), "a".to_owned())].into() } else { BTreeMap::new() },
            templates: if template { vec!["host".into()] } else { vec![] },
            source_roots: if connected != zone { vec!["/srv/a".into()] } else { vec![] },
            networks: if nat { vec![Network::None, Network::Nat] } else { vec![Network::None] },
            unenforced: if limits { BTreeMap::new() } else { [("memory".to_owned(), "no rights".to_owned())].into() },
            capacity,
            used,
        },
    )
}

proptest! {
    #[test]
    fn a_chosen_runner_fits_and_a_refusal_names_every_runner(spec in spec(), runners in prop::collection::vec(candidate(), 0..12)) {
        match place(&spec, &runners) {
            Ok(id) => {
                let runner = runners.iter().find(|runner| runner.id == id).expect("one of those given");
                prop_assert_eq!(misfit(&spec, runner), None);
                prop_assert!(runner.connected && runner.open);
                let shared = |content: &Content| content.directory == "/srv/a/project" && !runner.source_roots.is_empty();
                prop_assert!(spec.content.as_ref().is_none_or(shared));
                // What it takes nothing of may be overdrawn: a runner came back with less.
                let (wanted, used, there) = (Room::of(&spec), runner.used, runner.capacity);
                let fits = |wanted: u64, used: u64, there: u64| wanted == 0 || used + wanted <= there;
                prop_assert!(fits(wanted.cpu_millis, used.cpu_millis, there.cpu_millis));
                prop_assert!(fits(wanted.memory_bytes, used.memory_bytes, there.memory_bytes));
                prop_assert!(fits(wanted.disk_bytes, used.disk_bytes, there.disk_bytes));
                prop_assert!(fits(wanted.sandboxes, used.sandboxes, there.sandboxes));
            }
            Err(misfits) => {
                prop_assert_eq!(misfits.len(), runners.len());
                prop_assert!(runners.iter().all(|runner| misfit(&spec, runner).is_some()));
            }
        }
    }

    #[test]
    fn the_order_of_the_runners_does_not_matter(spec in spec(), mut runners in prop::collection::vec(candidate(), 0..12)) {
        let first = place(&spec, &runners).ok();
        runners.reverse();
        prop_assert_eq!(place(&spec, &runners).ok(), first);
    }

    #[test]
    fn no_runner_that_fits_would_be_less_used(spec in spec(), runners in prop::collection::vec(candidate(), 0..12)) {
        if let Ok(id) = place(&spec, &runners) {
            let share = |runner: &Candidate| runner.used.plus(Room::of(&spec)).share(&runner.capacity);
            let chosen = runners.iter().find(|runner| runner.id == id).expect("one of those given");
            for runner in runners.iter().filter(|runner| misfit(&spec, runner).is_none()) {
                prop_assert!(share(chosen) <= share(runner));
            }
        }
    }

    #[test]
    fn room_taken_and_given_back_is_the_room_before(spec in spec(), used in candidate()) {
        let room = Room::of(&spec);
        prop_assert_eq!(used.used.plus(room).minus(room), used.used);
    }
}

#[test]
fn one_reason_for_several_limits_is_told_once() {
    let limits = [("cpu", "no cgroup"), ("disk", "no quota"), ("memory", "no cgroup"), ("pids", "no cgroup")];
    let limits = limits.map(|(limit, why)| (limit.to_owned(), why.to_owned())).to_vec();
    let told = Misfit::Unenforced(limits).to_string();
    assert_eq!(told, "cannot enforce the limits of cpu (no cgroup), disk (no quota), memory, pids (no cgroup)");
}
