//! PostgreSQL as the store: the tests of the system run on it too (`DISPENSE_TEST_STORE=postgres`); these are about
//! the database itself.

use std::time::Duration;

use dispense_client::Code;
use dispense_client::v1::{CreateSandboxRequest, SandboxState};
use dispense_e2e::System;
use dispense_e2e::postgres::Postgres;

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
