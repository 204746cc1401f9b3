package filestore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"eboot"
)

// putIn is one Put of content.
func putIn(t *testing.T, in *Ingest, content []byte) {
	t.Helper()
	if err := in.Put(t.Context(), eboot.DigestOf(content), int64(len(content)), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// await waits until done, which is asked under in.mu, and reports whether it came so far.
func await(in *Ingest, done func() bool) bool {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-poll.C {
		in.mu.Lock()
		ok := done()
		in.mu.Unlock()
		if ok {
			return true
		}
	}
	return false
}

// heldCommit starts a Commit and returns when it has its batch and waits for its turn
// in the store; release lets it go on and returns what it says.
func heldCommit(t *testing.T, s *Store, in *Ingest) (release func() error) {
	t.Helper()
	s.committing.Lock()
	done := make(chan error, 1)
	go func() { done <- in.Commit() }()
	if !await(in, func() bool { return in.inCommit && len(in.pending) == 0 }) {
		s.committing.Unlock()
		t.Fatalf("the commit has not begun: %v", <-done)
	}
	return func() error {
		s.committing.Unlock()
		return <-done
	}
}

// The kernel tells of each failure once: beside a Commit nothing may ask it, before
// and after the disk is set to work early.
func TestNoWriteBackDuringCommit(t *testing.T) {
	s := openStore(t, Options{})
	in := s.Ingest()
	defer in.Close()
	putIn(t, in, []byte("first"))
	release := heldCommit(t, s, in)
	putIn(t, in, random(writeBackEach))
	in.mu.Lock()
	writing, unwritten := in.writing, in.unwritten
	in.mu.Unlock()
	if writing != nil || unwritten < writeBackEach {
		t.Errorf("the disk was set to work during a commit; %d bytes wait", unwritten)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	putIn(t, in, []byte("third"))
	in.settle()
	if in.unwritten >= writeBackEach {
		t.Errorf("the disk was not set to work after the commit: %d bytes wait", in.unwritten)
	}
	if err := in.Commit(); err != nil || len(s.Digests()) != 3 {
		t.Errorf("%v; %d blobs, want 3", err, len(s.Digests()))
	}
}

// A Commit waits for the sync that is under way and takes its error.
func TestCommitTakesErrorOfWriteBack(t *testing.T) {
	s := openStore(t, Options{})
	in := s.Ingest()
	defer in.Close()
	putIn(t, in, []byte("first"))
	writing := make(chan struct{})
	in.writing = writing
	done := make(chan error, 1)
	go func() { done <- in.Commit() }()
	if !await(in, func() bool { return in.inCommit }) {
		t.Errorf("the commit has not begun, or is over already")
	}
	in.mu.Lock()
	in.writing, in.failed = nil, syscall.EIO
	in.mu.Unlock()
	close(writing)
	if err := <-done; !errors.Is(err, syscall.EIO) || len(s.Digests()) != 0 || leftovers(t, s) != nil {
		t.Errorf("%v; %d blobs; unfinished: %v", err, len(s.Digests()), leftovers(t, s))
	}
}

// A failure is returned though nothing is there to commit, and once.
func TestFailedWriteBackOfEmptyBatch(t *testing.T) {
	s := openStore(t, Options{})
	in := s.Ingest()
	defer in.Close()
	putIn(t, in, []byte("unwanted"))
	in.failed = syscall.EIO
	if err := in.Keep(func(eboot.Digest) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); !errors.Is(err, syscall.EIO) {
		t.Errorf("commit after a failure: %v, want EIO", err)
	}
	putIn(t, in, []byte("wanted"))
	if err := in.Commit(); err != nil || len(s.Digests()) != 1 {
		t.Errorf("%v; %d blobs, want 1", err, len(s.Digests()))
	}
}

// The failure of a Commit may be about blobs that were Put meanwhile.
func TestFailedCommitTakesLaterPuts(t *testing.T) {
	s := openStore(t, Options{})
	in := s.Ingest()
	defer in.Close()
	early, late, slow := []byte("early"), []byte("late"), []byte("slow")
	obstacle := s.path(eboot.DigestOf(early))
	if err := os.Mkdir(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	result := make(chan error, 1)
	go func() { result <- in.Put(t.Context(), eboot.DigestOf(slow), int64(len(slow)), r) }()
	if _, err := w.Write(slow[:1]); err != nil { // it has begun
		t.Fatal(err)
	}
	putIn(t, in, early)
	release := heldCommit(t, s, in)
	putIn(t, in, late)
	if err := release(); err == nil {
		t.Error("committed over a directory")
	}
	if _, err := w.Write(slow[1:]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := <-result; err == nil {
		t.Error("a blob that was being written when the commit failed was taken")
	}
	if left := leftovers(t, s); left != nil {
		t.Errorf("unfinished: %v", left)
	}
	if err := in.Commit(); err != nil || len(s.Digests()) != 0 {
		t.Errorf("%v; %d blobs, want none", err, len(s.Digests()))
	}

	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]byte{early, late, slow} {
		putIn(t, in, c)
	}
	if err := in.Commit(); err != nil || len(s.Digests()) != 3 {
		t.Errorf("put again: %v; %d blobs, want 3", err, len(s.Digests()))
	}
}

// Close waits for the Commit, and what was Put meanwhile is dropped.
func TestCloseDuringCommit(t *testing.T) {
	s := openStore(t, Options{})
	in := s.Ingest()
	putIn(t, in, []byte("first"))
	release := heldCommit(t, s, in)
	putIn(t, in, random(writeBackEach))
	closed := make(chan error, 1)
	go func() { closed <- in.Close() }()
	if err := release(); err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if len(s.Digests()) != 1 || leftovers(t, s) != nil {
		t.Errorf("%d blobs, want 1; unfinished: %v", len(s.Digests()), leftovers(t, s))
	}
	if err := in.Commit(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("commit after close: %v", err)
	}
}
