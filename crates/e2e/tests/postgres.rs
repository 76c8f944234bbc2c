//! PostgreSQL as the store: the tests of the system run on it too (`DISPENSE_TEST_STORE=postgres`); these are about
//! the database itself.

use std::time::Duration;

use dispense_client::Code;
use dispense_client::v1::{CreateSandboxRequest, ListSandboxesRequest, SandboxState};
use dispense_e2e::System;
use dispense_e2e::postgres::{Fault, Postgres};
use dispense_server::LeadLost;

const SOON: Duration = Duration::from_secs(60);

fn named(name: &str) -> CreateSandboxRequest {
    CreateSandboxRequest { name: name.into(), wait: true, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_outlive_the_server_and_a_database_that_was_killed_is_used_again() {
    let Some(mut postgres) = Postgres::start() else { return };
    let mut system = System::start_on(&postgres.url()).await;
    let created = system.client.create(named("box")).await.expect("created");
    system.restart_server().await;
    assert_eq!(system.client.get("box").await.expect("kept").id, created.id);
    postgres.kill();
    let refused = system.client.create(named("other")).await.expect_err("there is no database");
    assert!(matches!(refused.code, Code::Unavailable | Code::Internal), "{refused}");
    postgres.run();
    let back = async {
        loop {
            if let Ok(sandbox) = system.client.create(named("again")).await {
                return sandbox;
            }
        }
    };
    let again = tokio::time::timeout(SOON, back).await.expect("it is used again");
    assert_eq!(again.state(), SandboxState::Running);
    assert_eq!(system.client.get("box").await.expect("kept").state(), SandboxState::Running);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_commit_was_not_answered_is_told_as_it_is_written() {
    let Some(postgres) = Postgres::start() else { return };
    let wire = postgres.wire().await;
    let system = System::start_on(&wire.url()).await;
    wire.fail(Fault::AnswerLost("written"));
    let written = system.client.create(named("written")).await.expect("it is written, and known to be");
    assert!(wire.has_failed());
    assert_eq!(written.state(), SandboxState::Running, "what follows from the commit was done");
    wire.fail(Fault::CommitLost("undone"));
    let done = system.client.create(named("undone")).await.expect("it was undone, and is done again");
    assert!(wire.has_failed());
    assert_eq!(done.state(), SandboxState::Running);
    let all = system.client.list_all(ListSandboxesRequest::default()).await.expect("they are listed");
    let mut names: Vec<_> = all.iter().map(|sandbox| sandbox.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["undone", "written"], "each once");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_cut_off_from_the_database_gives_up_the_lead() {
    let Some(postgres) = Postgres::start() else { return };
    let wire = postgres.wire().await;
    let system = System::start_on(&wire.url()).await;
    wire.fail(Fault::Gone);
    let why = tokio::time::timeout(SOON, system.deposed()).await;
    assert_eq!(why.expect("it gives up"), LeadLost::Silent);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_to_which_the_database_is_silent_gives_up_the_lead() {
    let Some(postgres) = Postgres::start() else { return };
    let wire = postgres.wire().await;
    let system = System::start_on(&wire.url()).await;
    system.client.create(named("box")).await.expect("created");
    wire.fail(Fault::Silence);
    let create = tokio::time::timeout(SOON, system.client.create(named("other"))).await;
    let refused = create.expect("nobody waits for ever").expect_err("nothing is written");
    assert_eq!(refused.code, Code::Unavailable, "{refused}");
    let why = tokio::time::timeout(SOON, system.deposed()).await;
    assert_eq!(why.expect("it gives up"), LeadLost::Silent);
    // Another server takes over meanwhile, and this one is still cut off.
    let next = System::start_on(&postgres.url()).await;
    assert_eq!(next.client.get("box").await.expect("kept").name, "box");
    next.stop().await;
    system.stop().await;
}
