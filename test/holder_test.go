package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// TestIdleSlaveWhoseServerEnds: the server that an idle slave is connected to is killed,
// or stops. The slave does not notice; it loads a module that it never had from another server
// at once, instead of waiting 60 s for the dead one. A server that is started meanwhile has
// its ports, and when the slaves are gone, nothing is left of the one that ended. A stock slave needs
// the holder for that; one with our loader may be told that its server stops.
func TestIdleSlaveWhoseServerEnds(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 2, "127.0.0.0/8", clusterOptions{})
	for _, loader := range []string{eboot.LoaderStock, eboot.LoaderEboot} {
		t.Run(loader, func(t *testing.T) {
			setLoader(t, c.client, loader)
			endServerOfIdleSlaves(t, erl, c, loader == eboot.LoaderStock)
		})
	}
}

func endServerOfIdleSlaves(t *testing.T, erl testutil.Erlang, c *serverCluster, held bool) {
	const limit = 1500 * time.Millisecond
	for _, end := range []struct {
		how string
		do  func(s *clusterServer)
	}{
		{"kill -9", func(s *clusterServer) { s.Kill() }},
		{"stop", func(s *clusterServer) {
			began := time.Now()
			s.Stop(t)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("a stop took %v although all slaves were quiet", took)
			}
		}},
	} {
		for range trials(5) {
			c.WaitFormed(t)
			c.WaitReady(t, erl, "127.0.0.1")
			asking, silent := c.startWaiting(t, erl, ""), c.startWaiting(t, erl, "")
			used := c.master(t, asking.Output())
			if c.master(t, silent.Output()) != used {
				t.Fatal("two slaves of one address chose different servers")
			}
			holder := holderOf(t, used)
			port := filePort(t, c, erl, used)
			end.do(used)
			if held && gone(holder) {
				t.Fatalf("%s: the holder ended with the server", end.how)
			}
			// Before it starts again: the slave must not get its module there.
			ln, err := net.Listen("tcp4", net.JoinHostPort(used.Address, strconv.Itoa(port)))
			if err != nil {
				t.Errorf("%s: the TCP port is not free: %v", end.how, err)
			} else {
				_ = ln.Close()
			}
			asking.Tell(t)
			took := asking.Loaded(t)
			t.Logf("%s: an idle slave loaded a module in %v", end.how, took)
			if took > limit {
				t.Errorf("%s: an idle slave loaded a module in %v, want at most %v", end.how, took, limit)
			}
			used.Start(t)
			c.WaitFormed(t) // all its ports were free
			silent.Tell(t)  // it loads, and ends
			testutil.Poll(t, 10*time.Second, "nothing is to be left of the server that ended", func() bool { return gone(holder) })
		}
	}
}

// filePort is the port of the file service of a server.
func filePort(t *testing.T, c *serverCluster, erl testutil.Erlang, s *clusterServer) int {
	t.Helper()
	conn := testutil.ListenUDP(t, "127.0.0.1:0")
	defer func() { _ = conn.Close() }()
	replies := testutil.Discover(t, conn, erl.ERTS, 200*time.Millisecond, s.Address)
	if len(replies) != 1 {
		t.Fatalf("%d replies of %s", len(replies), s.Name)
	}
	return int(replies[0].Port)
}

// holderOf is the process id of the holder of a server: its only child.
func holderOf(t *testing.T, s *clusterServer) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		children, _ := os.ReadFile(f) // the thread may have ended
		found = slices.Concat(found, strings.Fields(string(children)))
	}
	if len(found) != 1 {
		t.Fatalf("server %s has the children %q, want its holder", s.Name, found)
	}
	pid, err := strconv.Atoi(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone reports whether a process has ended, waited for or not.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}
