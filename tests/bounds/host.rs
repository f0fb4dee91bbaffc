//! The program as a child process, with a deadline for everything.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shardhost_client::security::channel::Security;
use shardhost_client::{Client, ClientOptions};

/// Longer than anything takes on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A node alone. Killed when dropped.
pub struct Host {
    child: Child,
    pub address: String,
    /// Where it serves clients.
    pub client_address: String,
    /// The same for operators.
    pub admin_address: String,
    security: Security,
    /// No one reads it unless a test does.
    pub stderr: Option<ChildStderr>,
}

impl Host {
    /// Starts it, after `before` in a shell, and waits until it serves.
    pub fn start(data_dir: &Path, before: &str, log: &str) -> Self {
        Self::of(serve(data_dir, before, log))
    }

    /// Starts it with a configuration, and waits until it serves.
    pub fn configured(data_dir: &Path, configuration: &str) -> Self {
        let path = data_dir.join("configuration.toml");
        std::fs::write(&path, configuration).unwrap();
        let mut command = serving(&data_dir.join("data"), "", "error");
        Self::of(command.arg("--config").arg(path).spawn().unwrap())
    }

    /// Starts it with these flags, for a client with these certificates, and waits until it serves.
    pub fn secured(data_dir: &Path, before: &str, flags: &[&str], security: Security) -> Self {
        let mut command = serving(data_dir, before, "error");
        let mut host = Self::of(command.args(flags).spawn().unwrap());
        host.security = security;
        host
    }

    fn of(mut child: Child) -> Self {
        let stdout = child.stdout.take().unwrap();
        let (sender, line) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            drop(sender.send(line));
        });
        let stderr = child.stderr.take();
        let security = Security::default();
        let [address, client_address, admin_address] = [(); 3].map(|()| String::new());
        let mut host = Self { child, address, client_address, admin_address, security, stderr };
        let line = line.recv_timeout(TIMEOUT).expect("it starts in time");
        let started: Value = serde_json::from_str(&line).expect("it says that it serves");
        host.address = started["address"].as_str().unwrap().to_owned();
        host.client_address = started["client_address"].as_str().unwrap().to_owned();
        host.admin_address = started["admin_address"].as_str().unwrap().to_owned();
        host
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send(self.process(), signal);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub async fn client(&self) -> Client {
        let options = ClientOptions { security: self.security.clone(), ..ClientOptions::default() };
        Client::connect([self.client_address.clone()], options).await.unwrap()
    }

    /// Writes and reads through a new connection.
    pub async fn serves(&mut self, key: &str) {
        assert!(self.is_running(), "the host ended");
        let table = self.client().await.table();
        let key = key.as_bytes().to_vec();
        table.put(key.clone(), "value").await.expect("a put is served");
        assert!(table.get(key).await.expect("a get is served").is_some());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts a node alone, whose standard streams are pipes.
pub fn serve(data_dir: &Path, before: &str, log: &str) -> Child {
    serving(data_dir, before, log).spawn().unwrap()
}

fn serving(data_dir: &Path, before: &str, log: &str) -> Command {
    let script = format!("{before} exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_shardhost")]);
    command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--tables", "2", "--queues", "1"]);
    command.arg("--data-dir").arg(data_dir).env("SHARDHOST_LOG", log);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A command of the program.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardhost"));
    command.args(arguments).env("SHARDHOST_LOG", "error").stdin(Stdio::null());
    command
}

pub fn send(process: u32, signal: Signal) {
    let id = Pid::from_raw(process.try_into().unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}

/// Waits for the end of a process.
pub fn end(child: &mut Child, within: Duration) -> ExitStatus {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            drop(child.kill());
            panic!("the process does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// All that is left of a stream of a process that ended.
pub fn rest(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Most bytes of memory that a process has had at once.
pub fn peak_memory(process: u32) -> usize {
    memory(process, "VmHWM:")
}

/// Bytes of memory that a process has.
pub fn resident_memory(process: u32) -> usize {
    memory(process, "VmRSS:")
}

fn memory(process: u32, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// The open files of a process.
pub fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}
