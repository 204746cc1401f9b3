package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
)

// Futures that Raft has forgotten, see Close, are the only ones who may wait on.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/raft.(*deferError).Error"))
}

// list is a StateMachine that keeps the commands it was given.
type list struct {
	mu      sync.Mutex
	items   []string
	applied int // commands applied by this instance, restored ones not
}

var errUnreadable = errors.New("command cannot be read")

func (l *list) Apply(index uint64, command []byte) any {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch string(command) {
	case "unreadable":
		panic(errUnreadable)
	case "bug":
		command = command[:0]
		return command[index]
	}
	l.items = append(l.items, string(command))
	l.applied++
	return fmt.Sprintf("%s at %d", command, index)
}

type savedList []string

func (s savedList) WriteTo(w io.Writer) (int64, error) {
	text, err := json.Marshal([]string(s))
	if err != nil {
		return 0, err
	}
	n, err := w.Write(text)
	return int64(n), err
}

func (l *list) Snapshot() (io.WriterTo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return savedList(slices.Clone(l.items)), nil
}

func (l *list) Restore(r io.Reader) error {
	var items []string
	if err := json.NewDecoder(r).Decode(&items); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = items
	return nil
}

func (l *list) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.items)
}

func (l *list) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied
}

type server struct {
	*Cluster
	list *list
}

func optionsOf(t testing.TB, dir string) Options {
	t.Helper()
	return Options{
		Dir: dir, ServerID: "server-1", Address: "127.0.0.1:4381", Bootstrap: true, StateMachine: &list{},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: t.Output()}),
	}
}

func open(t testing.TB, o Options) server {
	t.Helper()
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return server{c, o.StateMachine.(*list)}
}

func openLeader(t testing.TB, o Options) server {
	t.Helper()
	s := open(t, o)
	ctx := within10s(t)
	if err := s.WaitForLeader(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func within10s(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (s server) mustApply(t testing.TB, commands ...string) {
	t.Helper()
	for _, command := range commands {
		if _, err := s.Apply(within10s(t), []byte(command)); err != nil {
			t.Fatal(err)
		}
	}
}

func (s server) close(t testing.TB) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func wantItems(t testing.TB, s server, want ...string) {
	t.Helper()
	if got := s.list.all(); !slices.Equal(got, want) {
		t.Fatalf("state %q, want %q", got, want)
	}
}

func waitFor(t testing.TB, reason string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 15 s for: %s", reason)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// copyDir copies a directory as a power cut would leave it.
func copyDir(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func encodeList(t testing.TB, items ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	if _, err := savedList(items).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return &b
}
