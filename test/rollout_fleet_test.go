package test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// TestAcceptanceFleetSize boots ten thousand slaves within a minute, and again while a bundle is
// rolled out: every server shows the whole fleet at once, and the log grows by a few entries per
// second whatever slaves do.
func TestAcceptanceFleetSize(t *testing.T) {
	erl := testutil.RequireErl(t)
	n, over := many(300, 10_000), time.Duration(many(3, 60))*time.Second
	a, b := makeMarked(t, erl, "A", false), makeMarked(t, erl, "B", false)
	c := startCluster(t, 3, clusterOptions{})
	c.Allow(t, "127.0.0.0/8")
	c.PublishMarked(t, erl, a, true)
	c.PublishMarked(t, erl, b, false)
	c.WaitApplied(t)
	c.WaitReady(t, erl, bootSlave)
	for _, s := range c.servers {
		favour(t, s.PID())
	}
	f := &crowd{erl: erl, cluster: c, sessions: make([]*testutil.CheckedSession, n)}
	t.Cleanup(f.Close)

	memory := f.memory(t)
	before := c.lastIndex(t)
	took := f.Boot(t, a, over)
	entries := c.lastIndex(t) - before
	t.Logf("%d boots in %v: %d entries in the log; %d switches", n, took.Round(time.Second), entries, f.switches.Load())
	const few = 3 // entries per second
	if float64(entries) > few*took.Seconds() {
		t.Errorf("%d boots within %v put %d entries into the log, want at most %d per second", n, took, entries, few)
	}
	f.wantFleet(t, a)
	for i, after := range f.memory(t) {
		t.Logf("%s holds %d MB resident, %d MB before the %d boots", c.servers[i].Name, after>>20, memory[i]>>20, n)
	}

	c.Run(t, "rollout", "start", eboot.DefaultChannel, b.Ref.String(), "--stage", "10%", "--stage", "100%", "--min-healthy", "1s", "--deadline", "30s",
		"--approve").want(t, 0)
	// All of the second stage boot too, and count for nothing yet.
	c.WaitRollout(t, bootDeadline, eboot.RolloutRunning)
	c.Run(t, "rollout", "promote", eboot.DefaultChannel).want(t, 0)
	c.WaitApplied(t)
	before = c.lastIndex(t)
	took = f.Boot(t, b, over)
	entries = c.lastIndex(t) - before
	t.Logf("%d boots in %v in a rollout: %d entries in the log; %d switches", n, took.Round(time.Second), entries, f.switches.Load())
	if float64(entries) > few*took.Seconds() {
		t.Errorf("%d boots within %v in a rollout put %d entries into the log, want at most %d per second", n, took, entries, few)
	}
	r := c.WaitRollout(t, bootDeadline, eboot.RolloutSucceeded)
	t.Logf("totals by stage: %+v", r.Totals)
	f.wantFleet(t, b)
	for i, after := range f.memory(t) {
		t.Logf("%s holds %d MB resident after %d boots of %d slaves", c.servers[i].Name, after>>20, 2*n, n)
	}
}

// crowd is many simulated slaves, which stay connected between their boots.
type crowd struct {
	erl      testutil.Erlang
	cluster  *serverCluster
	sessions []*testutil.CheckedSession
	switches atomic.Int64
}

// Close ends the slaves.
func (f *crowd) Close() {
	for _, s := range f.sessions {
		if s != nil {
			s.Close()
		}
	}
}

// Boot boots each slave once, evenly over a time or as fast as it goes, and returns how long
// that took. All must get the tree.
func (f *crowd) Boot(t *testing.T, tree *markedTree, over time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 100 {
		workers.Go(func() {
			for !t.Failed() {
				i := int(next.Add(1)) - 1
				if i >= len(f.sessions) {
					return
				}
				<-time.After(time.Until(began.Add(over * time.Duration(i) / time.Duration(len(f.sessions)))))
				if err := f.bootOne(i, tree); err != nil {
					t.Errorf("slave %d: %v", i, err)
				}
			}
		})
	}
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return time.Since(began)
}

func (f *crowd) bootOne(i int, tree *markedTree) error {
	ctx, cancel := context.WithTimeout(context.Background(), bootDeadline)
	defer cancel()
	if f.sessions[i] != nil {
		f.sessions[i].Close()
	}
	s := testutil.NewCheckedSession(testutil.SessionOptions{
		Servers: f.cluster.Addresses(), ERTS: f.erl.ERTS, Local: fmt.Sprintf("127.100.%d.%d", i/200, 1+i%200), Root: slaveRoot,
	})
	f.sessions[i] = s
	boot := testutil.CheckedBoot{Script: slaveRoot + "/bin/start.boot", Files: []string{"lib/marked-1/ebin/marked_00.beam", "lib/marked-1/ebin/marked.beam"}}
	err := s.Boot(ctx, boot, func(path string, content []byte) error {
		if want, ok := tree.Files[path]; ok && string(content) != string(want) {
			return fmt.Errorf("%s is not of version %s", path, tree.Ref.Version)
		}
		return nil
	})
	f.switches.Add(int64(s.Switches))
	return err
}

// wantFleet waits until every server shows all slaves with their boot of the tree, and
// measures how long it takes to show them.
func (f *crowd) wantFleet(t *testing.T, tree *markedTree) {
	t.Helper()
	const limit = 200 * time.Millisecond
	for _, s := range f.cluster.servers {
		have := 0
		defer func() {
			if t.Failed() {
				t.Logf("%s shows %d of %d slaves with %s", s.Name, have, len(f.sessions), tree.Ref)
			}
		}()
		testutil.Poll(t, bootDeadline, s.Name+" is to show the whole fleet", func() bool {
			slaves, err := s.Client.Slaves(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			have = 0
			for _, row := range slaves {
				if row.Boot != nil && row.Boot.Bundle == tree.Ref && row.Boot.Phase == eboot.BootStarted && row.Boot.Failure == "" {
					have++
				}
			}
			return have == len(f.sessions)
		})
		var took []time.Duration
		for range 10 {
			began := time.Now()
			if _, err := s.Client.Slaves(t.Context()); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
		listed := s.Run(t, "slave", "list").want(t, 0)
		t.Logf("%s lists %d slaves in %v (median of 10, decoding included); `eboot slave list` takes %v", s.Name, len(f.sessions), median(took), listed.Took.Round(time.Millisecond))
		if median(took) > limit+slack() {
			t.Errorf("%s lists %d slaves in %v, want at most %v", s.Name, len(f.sessions), median(took), limit)
		}
	}
}

// memory is what each server holds resident, in bytes.
func (f *crowd) memory(t *testing.T) []int {
	t.Helper()
	var all []int
	for _, s := range f.cluster.servers {
		all = append(all, residentMemory(t, s.PID()))
	}
	return all
}

func residentMemory(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kilobytes, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatalf("process %d has no VmRSS", pid)
	return 0
}

// lastIndex is the newest entry of the log.
func (c *serverCluster) lastIndex(t testing.TB) (newest uint64) {
	t.Helper()
	for _, status := range c.statuses() {
		newest = max(newest, status.LastIndex)
	}
	return newest
}
