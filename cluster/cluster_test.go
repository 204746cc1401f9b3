package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

func TestBootstrapApplyRestart(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	answer, err := s.Apply(within10s(t), []byte("one"))
	if err != nil || !strings.HasPrefix(answer.(string), "one at ") {
		t.Fatalf("%v %v", answer, err)
	}
	s.mustApply(t, "two", "three")
	status := s.Status()
	if status.Role != "leader" || status.Leader != "server-1" || status.AppliedIndex != status.LastIndex || status.CommitIndex != status.LastIndex {
		t.Fatalf("%+v", status)
	}
	if want := []Member{{ID: "server-1", Address: "127.0.0.1:4381", Voter: true}}; !slices.Equal(status.Servers, want) {
		t.Fatalf("%+v", status.Servers)
	}
	s.close(t)
	s.close(t)

	again := openLeader(t, optionsOf(t, dir))
	wantItems(t, again, "one", "two", "three")
	if n := again.list.count(); n != 0 {
		t.Fatalf("%d commands were replayed after a stop, which takes a snapshot", n)
	}
	if again.Applied() < status.AppliedIndex {
		t.Fatalf("applied %d, before the stop %d", again.Applied(), status.AppliedIndex)
	}
	again.mustApply(t, "four")
	wantItems(t, again, "one", "two", "three", "four")
}

// A power cut leaves no snapshot: everything acknowledged is in the log.
func TestKillAndReplay(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one", "two")
	killed := copyDir(t, dir)
	s.mustApply(t, "three")

	again := openLeader(t, optionsOf(t, killed))
	wantItems(t, again, "one", "two")
	if n := again.list.count(); n != 2 {
		t.Fatalf("%d commands replayed", n)
	}
}

func TestSnapshotAndTail(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one", "two")
	for range 2 { // the second has nothing to do
		if err := s.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	s.mustApply(t, "three")
	again := openLeader(t, optionsOf(t, copyDir(t, dir)))
	wantItems(t, again, "one", "two", "three")
	if n := again.list.count(); n != 1 {
		t.Fatalf("%d commands replayed on top of the snapshot", n)
	}
}

func TestStartToLeaderIsFast(t *testing.T) {
	dir := t.TempDir()
	for _, what := range []string{"bootstrap", "restart"} {
		o := optionsOf(t, dir)
		began := time.Now()
		s := openLeader(t, o)
		took := time.Since(began)
		t.Logf("%s: leader after %v", what, took)
		// Without electAlone the first election alone waits for 1 s to 2 s.
		if took > 900*time.Millisecond {
			t.Errorf("%s: leader after %v only", what, took)
		}
		if reload := s.raft.ReloadableConfig(); reload.HeartbeatTimeout != time.Second || reload.ElectionTimeout != time.Second {
			t.Errorf("timeouts stay at %v and %v", reload.HeartbeatTimeout, reload.ElectionTimeout)
		}
		s.close(t)
	}
}

func BenchmarkStartToLeader(b *testing.B) {
	dir := b.TempDir()
	o := optionsOf(b, dir)
	o.Logger = nil
	openLeader(b, o).close(b)
	for b.Loop() {
		o.StateMachine = &list{}
		openLeader(b, o).close(b)
	}
}

func BenchmarkApply(b *testing.B) {
	o := optionsOf(b, b.TempDir())
	o.Logger = nil
	s := openLeader(b, o)
	for b.Loop() {
		s.mustApply(b, "x")
	}
}

func TestVerifiedReadSeesAcknowledgedChanges(t *testing.T) {
	s := open(t, optionsOf(t, t.TempDir()))
	if err := s.WaitForLeader(within10s(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.VerifiedRead(within10s(t)); err != nil { // right after the election
		t.Fatal(err)
	}
	for i := range 20 {
		s.mustApply(t, fmt.Sprint(i))
		if err := s.VerifiedRead(within10s(t)); err != nil {
			t.Fatal(err)
		}
		if n := len(s.list.all()); n != i+1 {
			t.Fatalf("%d items after %d changes", n, i+1)
		}
	}
}

func TestWaitApplied(t *testing.T) {
	s := openLeader(t, optionsOf(t, t.TempDir()))
	next := s.Applied() + 1
	done := make(chan error, 1)
	go func() { done <- s.WaitApplied(within10s(t), next) }()
	s.mustApply(t, "one")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := s.WaitApplied(ctx, next+100); !errors.Is(err, eboot.ErrTimeout) {
		t.Fatal(err)
	}
}

func TestWithoutLeader(t *testing.T) {
	o := optionsOf(t, t.TempDir())
	o.Bootstrap = false
	s := open(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	for what, err := range map[string]error{
		"wait":   s.WaitForLeader(ctx),
		"apply":  second(s.Apply(within10s(t), []byte("x"))),
		"verify": s.VerifiedRead(within10s(t)), "barrier": s.Barrier(within10s(t)),
		"restore": s.Restore(within10s(t), 2, encodeList(t)),
	} {
		if !errors.Is(err, eboot.ErrNoLeader) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Apply(ended, []byte("x")); !errors.Is(err, eboot.ErrTimeout) {
		t.Errorf("apply with an ended context: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// Every acknowledged change survives a stop in the middle of many, and nobody
// waits for ever.
func TestCloseDuringApply(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	var acknowledged sync.Map
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ; i++ {
				command := fmt.Sprintf("%d-%d", w, i)
				_, err := s.Apply(within10s(t), []byte(command))
				if err != nil {
					if !errors.Is(err, eboot.ErrNoLeader) && !errors.Is(err, eboot.ErrUnknownOutcome) {
						t.Errorf("%v", err)
					}
					return
				}
				acknowledged.Store(command, true)
			}
		})
	}
	waitFor(t, "some changes", func() bool { return len(s.list.all()) > 50 })
	s.close(t)
	writers.Wait()
	if _, err := s.Apply(within10s(t), []byte("late")); !errors.Is(err, eboot.ErrNoLeader) {
		t.Fatalf("apply after close: %v", err)
	}
	again := openLeader(t, optionsOf(t, dir))
	kept := map[string]bool{}
	for _, item := range again.list.all() {
		kept[item] = true
	}
	acknowledged.Range(func(command, _ any) bool {
		if !kept[command.(string)] {
			t.Errorf("%s was acknowledged and is lost", command)
		}
		return true
	})
}

func TestRestore(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one", "two")
	release, err := s.HoldWrites(within10s(t))
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- second(s.Apply(within10s(t), []byte("after"))) }()
	before := s.Applied()
	backup := encodeList(t, "old")
	if err := s.Restore(within10s(t), int64(backup.Len()), backup); err != nil {
		t.Fatal(err)
	}
	wantItems(t, s, "old")
	if s.Applied() <= before {
		t.Fatalf("applied %d, before the restore %d", s.Applied(), before)
	}
	release()
	release()
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	wantItems(t, s, "old", "after")
	killed := copyDir(t, dir)
	s.close(t)
	for _, dir := range []string{dir, killed} {
		again := openLeader(t, optionsOf(t, dir))
		wantItems(t, again, "old", "after")
		again.close(t)
	}
}

func TestRestoreOfTheWrongSizeChangesNothing(t *testing.T) {
	s := openLeader(t, optionsOf(t, t.TempDir()))
	s.mustApply(t, "one")
	if err := s.Restore(within10s(t), 99, encodeList(t, "old")); err == nil {
		t.Fatal("no error")
	}
	wantItems(t, s, "one")
	s.mustApply(t, "two")
}

// What the state machine cannot restore must not take the process down.
func TestRestoreOfSomethingElse(t *testing.T) {
	s := openLeader(t, optionsOf(t, t.TempDir()))
	s.mustApply(t, "one")
	if err := s.Restore(within10s(t), 4, strings.NewReader("junk")); !errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	wantItems(t, s, "one")
	if s.Failure() == nil {
		t.Fatal("raft goes on with a state machine that is not where the log is")
	}
}

func TestHoldWritesEndsWithItsContext(t *testing.T) {
	s := openLeader(t, optionsOf(t, t.TempDir()))
	release, err := s.HoldWrites(within10s(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if _, err := s.HoldWrites(ctx); !errors.Is(err, eboot.ErrTimeout) {
		t.Fatalf("a second hold: %v", err)
	}
	if _, err := s.Apply(ctx, []byte("x")); !errors.Is(err, eboot.ErrTimeout) {
		t.Fatalf("apply while held: %v", err)
	}
	release()
	s.mustApply(t, "one")
}

// An entry that cannot be applied stops Raft here, and nothing else: not the
// process, and not the reading of the state from before it.
func TestUnreadableEntryHalts(t *testing.T) {
	for _, command := range []string{"unreadable", "bug"} {
		t.Run(command, func(t *testing.T) {
			dir := t.TempDir()
			s := openLeader(t, optionsOf(t, dir))
			s.mustApply(t, "one")
			_, err := s.Apply(within10s(t), []byte(command))
			if !errors.Is(err, eboot.ErrUnknownOutcome) || command == "unreadable" && !errors.Is(err, errUnreadable) {
				t.Fatal(err)
			}
			waitFor(t, "raft to stop", func() bool { return s.Failure() != nil && s.Status().Role == "shutdown" })
			if s.Failure() == nil || !strings.Contains(s.Failure().Error(), "apply log entry") {
				t.Fatalf("failure: %v", s.Failure())
			}
			if _, err := s.Apply(within10s(t), []byte("two")); !errors.Is(err, eboot.ErrNoLeader) {
				t.Fatal(err)
			}
			wantItems(t, s, "one")
			applied := s.Applied()
			s.close(t)

			// The log still has the entry: the next start gets as far and no further.
			again := open(t, optionsOf(t, dir))
			waitFor(t, "the halt", func() bool { return again.Failure() != nil })
			wantItems(t, again, "one")
			if again.Applied() > applied {
				t.Fatalf("applied %d, before %d", again.Applied(), applied)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	unknown := errors.New("write raft.db: input/output error")
	for _, c := range []struct{ err, change, read error }{
		{raft.ErrEnqueueTimeout, eboot.ErrTimeout, eboot.ErrTimeout},
		{raft.ErrNotLeader, eboot.ErrNoLeader, eboot.ErrNoLeader},
		{raft.ErrLeadershipTransferInProgress, eboot.ErrNoLeader, eboot.ErrNoLeader},
		{raft.ErrAbortedByRestore, eboot.ErrConflict, eboot.ErrUnavailable},
		{raft.ErrLeadershipLost, eboot.ErrUnknownOutcome, eboot.ErrNoLeader},
		{raft.ErrRaftShutdown, eboot.ErrUnknownOutcome, eboot.ErrUnavailable},
		{unknown, eboot.ErrUnknownOutcome, eboot.ErrUnavailable},
	} {
		if err := changeError("apply", c.err); !errors.Is(err, c.change) || !errors.Is(err, c.err) {
			t.Errorf("change: %v", err)
		}
		if err := readError("barrier", c.err); !errors.Is(err, c.read) || !errors.Is(err, c.err) {
			t.Errorf("read: %v", err)
		}
	}
	if changeError("apply", nil) != nil || readError("barrier", nil) != nil {
		t.Error("nil became an error")
	}
}
