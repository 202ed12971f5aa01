//! A TCP proxy between one service and one server, so that the network between just these two can fail.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use url::Url;

const CHUNK: usize = 16 * 1024;
/// A server that is down refuses; the pause keeps a listener that fails from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Ends with its connections when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    control: watch::Sender<Control>,
    _accepting: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections are accepted and held, but no byte passes in either direction.
    Silent,
    /// Every chunk waits this long.
    Slow(Duration),
}

#[derive(Debug, Clone, Copy)]
struct Control {
    mode: Mode,
    /// Grows with every cut; a connection lives in one generation.
    cuts: u64,
}

impl Proxy {
    /// Listens on a free port in front of the server that the URL names.
    pub(crate) async fn start(server: &Url) -> anyhow::Result<Self> {
        let port = server.port().ok_or_else(|| anyhow::anyhow!("the URL of a private server has a port"))?;
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (control, _) = watch::channel(Control { mode: Mode::Open, cuts: 0 });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, target, control.clone()));
        Ok(Self { address, control, _accepting: accepting })
    }

    /// The server's URL by way of the proxy.
    pub(crate) fn url(&self, server: &Url) -> Url {
        let mut url = server.clone();
        // Fails only for URLs without a host.
        let _ = url.set_port(Some(self.address.port()));
        url
    }

    /// Resets every connection, on both sides.
    pub(crate) fn cut(&self) {
        self.control.send_modify(|control| control.cuts += 1);
    }

    /// No byte passes any more.
    pub(crate) fn silence(&self) {
        self.control.send_modify(|control| control.mode = Mode::Silent);
    }

    /// Every chunk waits.
    pub(crate) fn slow(&self, by: Duration) {
        self.control.send_modify(|control| control.mode = Mode::Slow(by));
    }

    /// Everything passes again; what was held back comes late.
    pub(crate) fn open(&self) {
        self.control.send_modify(|control| control.mode = Mode::Open);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, control: watch::Sender<Control>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                connections.spawn(connect(client, target, control.subscribe()));
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, target: SocketAddr, control: watch::Receiver<Control>) {
    // A cut is a reset and no orderly end.
    let _ = client.set_zero_linger();
    let cuts = control.borrow().cuts;
    let passing = async {
        let mut greeting = control.clone();
        let _ = greeting.wait_for(|control| control.mode != Mode::Silent).await;
        let Ok(server) = TcpStream::connect(target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true), server.set_zero_linger());
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::join!(pass(from_client, to_server, control.clone()), pass(from_server, to_client, control.clone()));
    };
    let mut cut = control.clone();
    tokio::select! {
        () = passing => {}
        // Without the proxy there is nothing to pass bytes for.
        _ = cut.wait_for(|control| control.cuts != cuts) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut control: watch::Receiver<Control>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length) = from.read(&mut chunk).await {
        // What was read before the silence waits here, and what comes then in the sockets' buffers.
        let Ok(mode) = control.wait_for(|control| control.mode != Mode::Silent).await.map(|control| control.mode)
        else {
            break;
        };
        if let Mode::Slow(by) = mode {
            sleep(by).await;
        }
        if length == 0 || to.write_all(&chunk[..length]).await.is_err() {
            break;
        }
    }
    // The other direction may still have something to say.
    let _ = to.shutdown().await;
}
