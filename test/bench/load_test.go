package bench

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// recordBoots records one boot of a stock node in each mode, served by reference.
func recordBoots(tb testing.TB, erl testutil.Erlang, reference target) []recordedBoot {
	tb.Helper()
	var boots []recordedBoot
	for _, mode := range []string{"interactive", "embedded"} {
		recorder := testutil.StartRecorder(tb, testutil.RecorderOptions{Address: recorderAddress, ERTS: erl.ERTS, Dial: reference.dial})
		slave := testutil.StartSlave(tb, erl, testutil.SlaveOptions{
			Hosts: []string{recorderAddress}, Root: erl.Root, Embedded: mode == "embedded", Eval: "halt(0).",
		})
		if exit := slave.Wait(time.Minute); exit.Status != 0 {
			tb.Fatalf("recorded %s boot ended with %d:\n%s", mode, exit.Status, exit.Output)
		}
		recorder.Close()
		boot := recordedBoot{mode: mode, Recording: testutil.NewRecording(recorder.Exchanges())}
		if boot.Requests() < 100 {
			tb.Fatalf("recorded %s boot has only %d requests", mode, boot.Requests())
		}
		boots = append(boots, boot)
	}
	return boots
}

type recordedBoot struct {
	mode string
	testutil.Recording
}

// loadResult is what one round of load did.
type loadResult struct {
	boots   int
	failed  int             // boots of the reference that were reset or took longer than patience
	elapsed time.Duration   // until the last boot was over
	cpu     time.Duration   // of the server
	times   []time.Duration // of each boot, from connect to the last reply
}

// patience is how long one boot may take. The reference listens with a backlog of 5:
// what does not fit into it waits for the kernel to try again, for up to a minute, and may be reset then.
const patience = 10 * time.Second

// load is boot after boot on `connections` connections at once, each boot on a
// new one, until `during` is over; boots that have begun are finished.
type load struct {
	boot        recordedBoot
	connections int
	during      time.Duration
	// prepared: the first connection of each worker is there before the clock starts.
	// Otherwise all connect at once, as a rack that is switched on.
	prepared bool
}

// run puts the load on server. Every boot must receive the same number of bytes as
// the first one of this server did; only the reference may fail.
func (l load) run(tb testing.TB, server target) loadResult {
	tb.Helper()
	want := l.replyBytes(tb, server)
	conns := make([]net.Conn, l.connections)
	if l.prepared {
		for i := range conns {
			conn, err := server.dial()
			if err != nil {
				tb.Fatalf("%s: %v", server.name, err)
			}
			conns[i] = conn
		}
	}
	var (
		workers sync.WaitGroup
		mu      sync.Mutex
		result  loadResult
		broken  error
	)
	used := cpuTime(tb, server.pids...)
	start := time.Now()
	for _, conn := range conns {
		workers.Go(func() {
			times, failed, err := l.worker(server, conn, start.Add(l.during), want)
			mu.Lock()
			defer mu.Unlock()
			result.times = append(result.times, times...)
			result.failed += failed
			if broken == nil {
				broken = err
			}
		})
	}
	workers.Wait()
	result.elapsed = time.Since(start)
	result.cpu = cpuTime(tb, server.pids...) - used
	result.boots = len(result.times)
	if broken == nil && result.boots == 0 {
		broken = fmt.Errorf("not one boot in %v", result.elapsed)
	}
	if broken != nil {
		tb.Fatalf("%s, %s boot, %d at once: %v", server.name, l.boot.mode, l.connections, broken)
	}
	return result
}

// worker boots until end, at first on conn unless that is nil.
func (l load) worker(server target, conn net.Conn, end time.Time, want int64) (times []time.Duration, failed int, err error) {
	for first := true; first || time.Now().Before(end); first = false {
		began := time.Now()
		got, err := l.bootOnce(server, conn, began.Add(patience))
		conn = nil
		switch {
		case err == nil && got != want:
			return times, failed, fmt.Errorf("boot received %d bytes, the first one %d", got, want)
		case err == nil:
			times = append(times, time.Since(began))
		case server.mayFail:
			failed++
		default:
			return times, failed, err
		}
	}
	return times, failed, nil
}

// bootOnce is one boot on conn, or on a new connection when that is nil.
func (l load) bootOnce(server target, conn net.Conn, deadline time.Time) (int64, error) {
	if conn == nil {
		var err error
		if conn, err = server.dial(); err != nil {
			return 0, err
		}
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, err
	}
	return l.boot.Replay(conn)
}

// replyBytes is what one boot receives of server. It may differ from the recorded
// one by what servers say of times, owners and devices of files, not by the files.
func (l load) replyBytes(tb testing.TB, server target) int64 {
	tb.Helper()
	conn, err := server.dial()
	if err != nil {
		tb.Fatalf("%s: %v", server.name, err)
	}
	defer func() { _ = conn.Close() }()
	got, err := l.boot.Replay(conn)
	if err != nil {
		tb.Fatalf("%s, %s boot: %v", server.name, l.boot.mode, err)
	}
	if difference, recorded := got-l.boot.ReplyBytes(), l.boot.ReplyBytes(); max(difference, -difference) > recorded/100 {
		tb.Fatalf("%s, %s boot: %d bytes, recorded %d: it does not serve the same", server.name, l.boot.mode, got, recorded)
	}
	return got
}
