//! The policy of one box: from what is wanted and what is, the next step. Pure: no IO, no clock.
//!
//! ```text
//!            create            start             (agent answers)
//!  Absent ──────────► Stopped ──────► Started ──────────────────► (reported as running)
//!    ▲                 ▲   │            │ stop, or its end
//!    └──── destroy ────┴───┴── Failed ◄─┘
//! ```
//!
//! INVARIANT: a step never acts for a generation older than the newest that was wanted; a box of an older
//! generation is destroyed before one of a newer is made, so no sandbox has two live boxes here.

use dispense_api::id::Generation;

/// What the server wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Running,
    Stopped,
    Absent,
}

/// What the box is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observed {
    Absent,
    Stopped(Generation),
    Started(Generation),
    /// A step failed; the files may be there.
    Failed(Generation),
    /// Its record cannot be read: nobody knows whose files these are, so only their owner's word removes them.
    Broken,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    Start,
    Stop,
    Destroy,
    Nothing,
}

impl Step {
    /// In traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "box.create",
            Self::Start => "box.start",
            Self::Stop => "box.stop",
            Self::Destroy => "box.destroy",
            Self::Nothing => "box.nothing",
        }
    }
}

impl Observed {
    /// Of the box that is there.
    pub(crate) fn generation(self) -> Option<Generation> {
        match self {
            Self::Absent | Self::Broken => None,
            Self::Stopped(generation) | Self::Started(generation) | Self::Failed(generation) => Some(generation),
        }
    }
}

/// Whether an order of `new` replaces one of `newest`.
pub(crate) fn supersedes(newest: Option<Generation>, new: Generation) -> bool {
    newest.is_none_or(|newest| new >= newest)
}

/// The next step towards `wanted` of `generation`.
pub(crate) fn next_step(wanted: Wanted, generation: Generation, observed: Observed) -> Step {
    let older = observed.generation().is_some_and(|there| there < generation);
    match (wanted, observed) {
        (Wanted::Absent, Observed::Absent) => Step::Nothing,
        (Wanted::Absent, _) => Step::Destroy,
        (Wanted::Running | Wanted::Stopped, Observed::Broken) => Step::Nothing,
        _ if older => Step::Destroy,
        (Wanted::Running, Observed::Absent) => Step::Create,
        (Wanted::Running, Observed::Stopped(_)) => Step::Start,
        // A failure is told, and the server decides: it may want it stopped, absent, or in a new generation.
        (Wanted::Running, Observed::Started(_) | Observed::Failed(_)) => Step::Nothing,
        (Wanted::Stopped, Observed::Started(_) | Observed::Failed(_)) => Step::Stop,
        (Wanted::Stopped, Observed::Stopped(_) | Observed::Absent) => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_WANTED: [Wanted; 3] = [Wanted::Running, Wanted::Stopped, Wanted::Absent];

    fn apply(step: Step, generation: Generation, observed: Observed) -> Observed {
        match step {
            Step::Create | Step::Stop => Observed::Stopped(generation),
            Step::Start => Observed::Started(generation),
            Step::Destroy => Observed::Absent,
            Step::Nothing => observed,
        }
    }

    #[test]
    fn every_order_is_reached_in_few_steps_from_every_state() {
        for wanted in ALL_WANTED {
            for there in [1, 2] {
                let there = Generation(there);
                for start in [Observed::Absent, Observed::Stopped(there), Observed::Started(there)] {
                    let generation = Generation(2);
                    let mut observed = start;
                    for _ in 0..3 {
                        observed = apply(next_step(wanted, generation, observed), generation, observed);
                    }
                    assert_eq!(next_step(wanted, generation, observed), Step::Nothing, "{wanted:?} from {start:?}");
                    match wanted {
                        Wanted::Running => assert_eq!(observed, Observed::Started(generation)),
                        Wanted::Stopped => assert_ne!(observed, Observed::Started(generation)),
                        Wanted::Absent => assert_eq!(observed, Observed::Absent),
                    }
                }
            }
        }
    }

    #[test]
    fn a_box_of_an_older_generation_is_destroyed_before_anything_else() {
        for wanted in ALL_WANTED {
            for old in
                [Observed::Stopped(Generation(1)), Observed::Started(Generation(1)), Observed::Failed(Generation(1))]
            {
                assert_eq!(next_step(wanted, Generation(2), old), Step::Destroy);
            }
        }
    }

    #[test]
    fn a_failed_box_is_not_tried_again_in_its_generation_but_can_be_left() {
        let failed = Observed::Failed(Generation(3));
        assert_eq!(next_step(Wanted::Running, Generation(3), failed), Step::Nothing);
        assert_eq!(next_step(Wanted::Stopped, Generation(3), failed), Step::Stop);
        assert_eq!(next_step(Wanted::Absent, Generation(3), failed), Step::Destroy);
    }

    #[test]
    fn an_older_order_supersedes_nothing() {
        assert!(supersedes(None, Generation(0)));
        assert!(supersedes(Some(Generation(2)), Generation(2)));
        assert!(!supersedes(Some(Generation(2)), Generation(1)));
    }
}
