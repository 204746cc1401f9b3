package test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// TestAcceptanceLoaderManyAtOnce has a thousand slaves with our loader boot at the same moment:
// all complete, and none takes the load for the death of a server. The slaves are simulated; each
// has an address of its own, as in a data centre whose power is back.
func TestAcceptanceLoaderManyAtOnce(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	b := newBoots(t, erl, c, 1) // teaches the servers what a boot needs
	b.ways.Close()
	n := many(60, 1000)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	type result struct {
		testutil.SessionCounts
		took time.Duration
		from string
		err  error
	}
	for _, server := range c.servers {
		favour(t, server.PID())
	}
	results := make([]result, n)
	var slaves sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		slaves.Go(func() {
			s := testutil.NewSession(testutil.SessionOptions{
				Servers: c.Addresses(), ERTS: erl.ERTS, Local: fmt.Sprintf("127.100.%d.%d", i/200, 1+i%200), Root: slaveRoot, Embedded: i%2 == 1,
			})
			defer s.Close()
			<-begin
			began := time.Now()
			err := s.Boot(ctx, testutil.SimulatedBoot{Script: slaveRoot + "/bin/start.boot", Requests: []any{
				testutil.Tuple{testutil.Atom("read_file_info"), slaveRoot + "/lib"},
				testutil.Tuple{testutil.Atom("list_dir"), slaveRoot + "/lib"},
				testutil.Tuple{testutil.Atom("get"), slaveRoot + "/lib/nothing.beam"},
			}})
			results[i] = result{s.SessionCounts, time.Since(began), s.Server().String(), err}
		})
	}
	began := time.Now()
	close(begin)
	slaves.Wait()
	elapsed := time.Since(began)
	var bytes int64
	var took []time.Duration
	switches, keepAlives, failed := 0, 0, 0
	from := map[string]int{}
	for i, r := range results {
		if r.err != nil {
			failed++
			if failed <= 5 {
				t.Errorf("slave %d: %v (%+v)", i, r.err, r.SessionCounts)
			}
			continue
		}
		bytes += r.Bytes
		took = append(took, r.took)
		if switches += r.Switches; r.Switches > 0 && switches <= 5 {
			t.Logf("slave %d left a server after %v: %v", i, r.took, r.Loss)
		}
		keepAlives += r.KeepAlives
		from[c.At(t, r.from).Name]++
		if r.Files == 0 {
			t.Errorf("slave %d was sent no files: %+v", i, r.SessionCounts)
		}
	}
	if failed > 0 {
		t.Fatalf("%d of %d boots failed", failed, n)
	}
	if switches != 0 {
		t.Errorf("%d switches between servers though none was away", switches)
	}
	t.Logf("%d boots at once in %v: each %v (median; at most %v), %d MB, %d keep-alives, %d switches, by server %v",
		n, elapsed.Round(time.Millisecond), median(took), slices.Max(took).Round(time.Millisecond), bytes>>20, keepAlives, switches, from)
}

// favour has the threads of a process come before others on the processors: a thousand slaves
// have processors of their own, and leave those of the servers alone. Where it is not allowed, they share.
func favour(t testing.TB, pid int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(filepath.Base(thread))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, tid, -15); err != nil {
			t.Logf("the servers share the processors with the slaves: %v", err)
			return
		}
	}
}
