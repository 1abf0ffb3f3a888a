//! What the kernel knows of this process, read from `/proc` at each scrape. The names are those that Prometheus
//! clients share, so that ready-made dashboards and alerts work.

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Registry};

pub(super) fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    registry.register(Box::new(Process::new()?))
}

struct Process {
    open_fds: Gauge,
    max_fds: Gauge,
    resident: Gauge,
    virtual_size: Gauge,
    threads: Gauge,
    start_time: Gauge,
    cpu: Counter,
    /// Held while `cpu` is moved forward, so that two scrapes at once don't add the same seconds twice.
    moving: Mutex<()>,
}

impl Process {
    fn new() -> Result<Process, prometheus::Error> {
        Ok(Process {
            open_fds: Gauge::new("process_open_fds", "Open file descriptors.")?,
            max_fds: Gauge::new("process_max_fds", "Limit of open file descriptors (soft RLIMIT_NOFILE).")?,
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory in bytes.")?,
            virtual_size: Gauge::new("process_virtual_memory_bytes", "Virtual memory in bytes.")?,
            threads: Gauge::new("process_threads", "OS threads.")?,
            start_time: Gauge::new("process_start_time_seconds", "Start of the process, Unix time.")?,
            cpu: Counter::new("process_cpu_seconds_total", "User and system CPU time.")?,
            moving: Mutex::new(()),
        })
    }

    fn metrics(&self) -> [&dyn Collector; 7] {
        let Process { open_fds, max_fds, resident, virtual_size, threads, start_time, cpu, moving: _ } = self;
        [open_fds, max_fds, resident, virtual_size, threads, start_time, cpu]
    }

    /// A value that cannot be read keeps its last one.
    fn refresh(&self) {
        if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
            // The directory itself is open while it is counted.
            self.open_fds.set(descriptors.count().saturating_sub(1) as f64);
        }
        if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
            self.max_fds.set(soft as f64);
        }
        if let Some(stat) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(parse_stat) {
            let ticks_per_second = sysconf(nix::unistd::SysconfVar::CLK_TCK, 100.0);
            self.resident.set(stat.resident_pages * sysconf(nix::unistd::SysconfVar::PAGE_SIZE, 4096.0));
            self.virtual_size.set(stat.virtual_bytes);
            self.threads.set(stat.threads);
            if let Some(boot) = boot_time() {
                self.start_time.set(boot + stat.start_ticks / ticks_per_second);
            }
            let _moving = self.moving.lock();
            self.cpu.inc_by((stat.cpu_ticks / ticks_per_second - self.cpu.get()).max(0.0));
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.metrics().into_iter().flat_map(|metric| metric.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.refresh();
        self.metrics().into_iter().flat_map(|metric| metric.collect()).collect()
    }
}

/// The fields of `/proc/self/stat` (proc_pid_stat(5)) that are shown.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    threads: f64,
    start_ticks: f64,
    virtual_bytes: f64,
    resident_pages: f64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in brackets and may hold anything: count from its end. What follows
    // is field 3 of the manual.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Stat {
        cpu_ticks: field(14)? + field(15)?,
        threads: field(20)?,
        start_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

/// Unix time of the boot in seconds.
fn boot_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn sysconf(variable: nix::unistd::SysconfVar, otherwise: f64) -> f64 {
    nix::unistd::sysconf(variable).ok().flatten().map_or(otherwise, |value| value as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_hostile_name() {
        let line = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 110 20 13 14 15 16 17 18 900 1000 50 0";
        let expected = Stat {
            cpu_ticks: 130.0,
            threads: 17.0,
            start_ticks: 900.0,
            virtual_bytes: 1000.0,
            resident_pages: 50.0,
        };
        assert_eq!(parse_stat(line), Some(expected));
        assert_eq!(parse_stat("42 (short) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn cpu_time_never_runs_backwards() {
        let process = Process::new().unwrap();
        let mut last = 0.0;
        for _ in 0..3 {
            process.refresh();
            let now = process.cpu.get();
            assert!(now >= last);
            last = now;
        }
    }
}
