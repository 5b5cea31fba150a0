//! The real binary as a process: started, signalled, killed, and all that it wrote.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use serde_json::Value;

pub use rustix::process::Signal;

use super::cluster::Settings;
use super::{PATIENCE, until, within};

type Lines = Arc<Mutex<Vec<String>>>;

pub struct Process {
    child: Child,
    pub stdout: Lines,
    pub stderr: Lines,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Process {
    /// With these settings and nothing else in its environment.
    pub fn start(arguments: &[&str], settings: &Settings) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(arguments);
        Self::spawn(command, settings)
    }

    /// A shell that is to `exec "$0"`, which is the binary.
    pub fn start_by_shell(text: &str, settings: &Settings) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text, env!("CARGO_BIN_EXE_tidings")]);
        Self::spawn(command, settings)
    }

    fn spawn(mut command: Command, settings: &Settings) -> Self {
        let mut child = command
            .env_clear()
            .envs(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (stdout, out) = lines(child.stdout.take().unwrap());
        let (stderr, err) = lines(child.stderr.take().unwrap());
        Self { child, stdout, stderr, readers: vec![out, err] }
    }

    /// A node; returns when it serves.
    pub async fn node(settings: &Settings) -> (Self, SocketAddr) {
        let mut process = Self::start(&[], settings);
        let addr = until("the node says where it listens", async || {
            if let Some(status) = process.child.try_wait().unwrap() {
                panic!("{status} instead of a start: {:?}", process.stderr.lock().unwrap());
            }
            let lines = process.stdout.lock().unwrap();
            lines.iter().find_map(|line| line.split_once("://")?.1.parse().ok())
        })
        .await;
        (process, addr)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// As a crash or a power cut does it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end, and for the last line it wrote.
    pub async fn exit(&mut self) -> ExitStatus {
        self.exit_within(PATIENCE).await
    }

    pub async fn exit_within(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        let ended = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let status = within(limit, "the process ends", ended).await;
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        status
    }

    pub fn errors(&self) -> String {
        self.stderr.lock().unwrap().join("\n")
    }

    pub fn output(&self) -> String {
        self.stdout.lock().unwrap().join("\n")
    }

    /// What it logged, each line read as JSON.
    pub fn logs(&self) -> Vec<Value> {
        let lines = self.stderr.lock().unwrap();
        let parsed = lines.iter().map(|line| {
            serde_json::from_str(line).unwrap_or_else(|_| panic!("a log line is no JSON: {line}"))
        });
        parsed.collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(stream: impl Read + Send + 'static) -> (Lines, std::thread::JoinHandle<()>) {
    let lines = Lines::default();
    let written = lines.clone();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            written.lock().unwrap().push(line);
        }
    });
    (lines, reader)
}
