// Package systemd tells the service manager how this process is doing, by the
// protocol of sd_notify(3): ready, stopping, one line of status, and signs of
// life for the watchdog (WatchdogSec= in systemd.service(5)).
//
// The watchdog turns a hang into a crash. When the signs of life stop, systemd
// sends SIGABRT, at which the Go runtime writes the stack of every goroutine to
// the journal, and starts the process anew; the kernel closes its sockets, so
// slaves move on to another server in half a second instead of the 60 s after
// which they give a silent one up.
//
// A Notifier is made once and used by whoever has something to tell; its methods
// may be called at the same time. It starts no goroutine but for one timer of Watch,
// which ends with Watch. A process that was not started by systemd has no
// NOTIFY_SOCKET: then everything here does nothing.
//
// systemd watches a service only while it is running: not before Ready, which
// ends TimeoutStartSec=, and not after Stopping, where TimeoutStopSec= counts
// instead (systemd, src/core/service.c, service_set_state). Ready means that the
// process does its work, not that its cluster has a leader: the first of three
// servers would never become ready.
package systemd
