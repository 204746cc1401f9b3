package test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// A server tells systemd when slaves are served, then that it lives, and stops saying so
// when it hangs: that is what gets a hung server killed, and its slaves to another one.
func TestWatchdog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	c := newCluster(t, 1, clusterOptions{Settings: []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=1000000"}})
	s := c.servers[0]
	s.Start(t)

	next := func(within time.Duration) string {
		buffer := make([]byte, 1<<10)
		if err := manager.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(buffer)
		if err != nil {
			return ""
		}
		return string(buffer[:n])
	}
	if got := next(20 * time.Second); got != "READY=1" {
		t.Fatalf("the first word is %q", got)
	}
	if _, ok := s.status(); !ok {
		t.Error("it said that it is ready and does not answer")
	}
	for range 3 {
		if got := next(5 * time.Second); got != "WATCHDOG=1" {
			t.Fatalf("a server that lives says %q", got)
		}
	}
	s.Pause()
	for next(100*time.Millisecond) != "" { // what was said before
	}
	if got := next(2 * time.Second); got != "" {
		t.Fatalf("a server that hangs says %q", got)
	}
	s.Resume()
	if got := next(5 * time.Second); got != "WATCHDOG=1" {
		t.Fatalf("a server that goes on says %q", got)
	}
	s.Stop(t)
	testutil.Poll(t, 5*time.Second, "the stop is to be told", func() bool { return strings.HasPrefix(next(time.Second), "STOPPING=1") })
}
