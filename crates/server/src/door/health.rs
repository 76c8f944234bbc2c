//! Whether this server serves, for those who watch it: `grpc.health.v1`, and `/readyz`.

use std::sync::atomic::{AtomicBool, Ordering};

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// Of the server as a whole, and of each of its services.
pub(crate) struct Health {
    reporter: HealthReporter,
    services: Vec<String>,
    draining: AtomicBool,
}

impl Health {
    /// It serves, with these services.
    pub(crate) async fn serving(services: Vec<String>) -> Self {
        let health = Self { reporter: HealthReporter::new(), services, draining: AtomicBool::new(false) };
        health.tell(ServingStatus::Serving).await;
        health
    }

    /// It is about to end: balancers send nothing new here.
    pub(crate) async fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.tell(ServingStatus::NotServing).await;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    async fn tell(&self, status: ServingStatus) {
        // The empty name is the server as a whole.
        for service in self.services.iter().map(String::as_str).chain([""]) {
            self.reporter.set_service_status(service, status).await;
        }
    }

    pub(super) fn server(&self) -> HealthServer<impl tonic_health::pb::health_server::Health + use<>> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }
}
