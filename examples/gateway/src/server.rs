//! Sockets: limits of connections and heads, and an end that finishes what is under way.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::gateway::Gateway;
use crate::{Failure, admin, api};

/// Both listeners, bound.
pub struct Listeners {
    pub clients: TcpListener,
    pub admin: TcpListener,
}

impl Listeners {
    pub async fn bind(clients: SocketAddr, admin: SocketAddr) -> Result<Self, Failure> {
        let bind = async |address: SocketAddr| {
            let listener = TcpListener::bind(address).await;
            listener.map_err(|error| Failure(format!("listening on {address}: {error}")))
        };
        Ok(Self {
            clients: bind(clients).await?,
            admin: bind(admin).await?,
        })
    }
}

/// Serves on the addresses of the configuration until `stop`.
pub async fn run(gateway: Arc<Gateway>, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let config = &gateway.config;
    let listeners = Listeners::bind(config.listen, config.admin_listen).await?;
    serve(gateway, listeners, stop).await;
    Ok(())
}

/// Serves until `stop`, then finishes requests under way.
pub async fn serve(gateway: Arc<Gateway>, listeners: Listeners, stop: impl Future<Output = ()>) {
    let address = |listener: &TcpListener| {
        listener
            .local_addr()
            .map_or_else(|error| error.to_string(), |at| at.to_string())
    };
    tracing::info!(
        clients = address(&listeners.clients),
        admin = address(&listeners.admin),
        generation = %gateway.router.generation(),
        "serving"
    );
    let (say_stop, stopped) = watch::channel(false);
    let limit = gateway.config.limits.connections;
    let clients = accept(
        Arc::clone(&gateway),
        listeners.clients,
        api::routes(&gateway),
        limit,
        stopped.clone(),
    );
    let clients = tokio::spawn(clients);
    let admin = admin::routes(&gateway);
    let admin = tokio::spawn(accept(
        Arc::clone(&gateway),
        listeners.admin,
        admin,
        64,
        stopped,
    ));
    stop.await;
    tracing::info!("stopping");
    gateway.drain();
    // Both loops hear it, unless they have ended.
    let _ = say_stop.send(true);
    let _ = tokio::join!(clients, admin);
    tracing::info!("stopped");
}

/// SIGTERM or Ctrl-C.
pub async fn signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut terminate) => {
                terminate.recv().await;
            }
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

/// Takes connections until `stopped`, then waits for those that are open.
async fn accept(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    routes: Router,
    most: usize,
    mut stopped: watch::Receiver<bool>,
) {
    let limits = &gateway.config.limits;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits.header_seconds))
        .max_headers(limits.headers)
        .max_header_size(limits.header_kib << 10);
    let slots = Arc::new(Semaphore::new(most));
    let graceful = GracefulShutdown::new();
    let mut is_stopped = pin!(async move {
        // An error means that the sender is gone, which is a stop, too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    });
    loop {
        let accepted = async {
            // The next connection waits in the system's queue while all places are taken.
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = &mut is_stopped => break,
            accepted = accepted => accepted,
        };
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Such as too many open files.
                tracing::warn!("accepting: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // An error costs speed alone.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(routes.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        let gateway = Arc::clone(&gateway);
        gateway.metrics.open_connections.inc();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                gateway.metrics.broken_connections.inc();
                tracing::debug!("a connection: {error}");
            }
            gateway.metrics.open_connections.dec();
            drop(slot);
        });
    }
    drop(listener);
    let patience = Duration::from_secs(gateway.config.limits.drain_seconds);
    if tokio::time::timeout(patience, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests were under way after {} s", patience.as_secs());
    }
}
