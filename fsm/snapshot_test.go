package fsm

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"eboot"
)

func TestSnapshotAndTailEqualFullReplay(t *testing.T) {
	full := newLog(t)
	for _, c := range example() {
		full.must(c.command)
	}
	for cut := range full.entries {
		m := New(nil)
		for i, entry := range full.entries[:cut] {
			m.Apply(uint64(i+1), entry)
		}
		other := New(nil)
		if err := other.Restore(bytes.NewReader(snapshotOf(t, m.State()))); err != nil {
			t.Fatal(err)
		}
		for i, entry := range full.entries[cut:] {
			other.Apply(uint64(cut+i+1), entry)
		}
		if !bytes.Equal(snapshotOf(t, other.State()), snapshotOf(t, full.machine.State())) {
			t.Fatalf("snapshot at %d and the tail give another state than the whole log", cut)
		}
		if other.State().Digest() != full.machine.State().Digest() {
			t.Fatalf("cut at %d: digests differ", cut)
		}
	}
}

func TestReadStateRefuses(t *testing.T) {
	l := newLog(t)
	for _, c := range example() {
		l.must(c.command)
	}
	good := snapshotOf(t, l.machine.State())
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := ReadState(bytes.NewReader(bad)); !errors.Is(err, eboot.ErrDamaged) && !errors.Is(err, eboot.ErrInvalid) {
			t.Fatalf("bit 0 of byte %d flipped: %v", i, err)
		}
		if _, err := ReadState(bytes.NewReader(good[:i])); !errors.Is(err, eboot.ErrDamaged) {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
	if _, err := ReadState(bytes.NewReader(append(bytes.Clone(good), 0))); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatalf("more after the end: %v", err)
	}
	if _, err := ReadState(bytes.NewReader([]byte("something else altogether"))); !errors.Is(err, eboot.ErrInvalid) {
		t.Fatalf("no snapshot: %v", err)
	}
	broken := errors.New("broken pipe")
	if _, err := ReadState(io.MultiReader(bytes.NewReader(good[:40]), iotest.ErrReader(broken))); !errors.Is(err, broken) || errors.Is(err, eboot.ErrDamaged) {
		t.Fatalf("an error of the reader: %v", err)
	}
	m := New(l.machine.State())
	before := m.State()
	if err := m.Restore(bytes.NewReader(good[:len(good)-1])); err == nil || m.State() != before {
		t.Fatalf("a failed restore (%v) changed the state", err)
	}
}

// The wording of an error may change in another version of eboot; the digest,
// which servers compare, must not change with it.
func TestDigestLeavesOutTexts(t *testing.T) {
	l := newLog(t)
	l.apply(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("no@1")})
	s := l.machine.State()
	reworded := *s.answers[0]
	reworded.Text = "no such thing"
	other := *s
	other.answers = []*answer{&reworded}
	if newState(other).Digest() != s.Digest() {
		t.Error("rewording changed the digest")
	}
	reworded.Code = "conflict"
	if newState(other).Digest() == s.Digest() {
		t.Error("another error code left the digest as it was")
	}
}

func TestForRestore(t *testing.T) {
	old := newLog(t)
	old.must(Init{Header: old.header(), ClusterID: "old"})
	for _, p := range []string{"10.0.0.0/8", "11.0.0.0/8"} {
		old.must(AllowSlaves{Header: old.header(), Entries: []eboot.WhitelistEntry{entryOf(p, "stable", nil)}})
	}
	old.must(AddBundle{Header: old.header(), Bundle: bundleOf("otp", "1", "13.1", "one")})
	old.must(SetDrained{Header: old.header(), Server: "old-server", Drained: true})
	old.must(RemoveServer{Header: old.header(), Server: "old-removed"})
	old.must(RaiseVersion{Header: old.header(), Version: Version})
	backup := reread(t, old.machine.State())

	now := newLog(t)
	now.must(Init{Header: now.header(), ClusterID: "new"})
	for i := range 5 {
		now.must(AllowSlaves{Header: now.header(), Entries: []eboot.WhitelistEntry{entryOf("12.0.0.0/8", []string{"stable", "canary"}[i%2], nil)}})
	}
	now.must(SetDrained{Header: now.header(), Server: "server-b", Drained: true})
	now.must(RemoveServer{Header: now.header(), Server: "server-a"})
	current := now.machine.State()
	if err := now.machine.Restore(bytes.NewReader(snapshotOf(t, backup.ForRestore(current, 0, Header{})))); err != nil {
		t.Fatal(err)
	}
	s := now.machine.State()
	if s.Generation() != current.Generation()+1 || s.Index() != current.Index()+1 || s.Cluster() != "new" || s.WhitelistSize() != 2 {
		t.Fatalf("generation %d index %d cluster %s entries %d", s.Generation(), s.Index(), s.Cluster(), s.WhitelistSize())
	}
	if s.Version() != 1 || !slices.Equal(s.DrainedServers(), []string{"server-b"}) || !s.Removed("server-a") || s.Removed("old-removed") {
		t.Fatalf("version %d, drained %v, removed %v", s.Version(), s.drained, s.removed)
	}
	if b, ok := s.Bundle(refOf("otp@1"), "13.1"); !ok || len(b.Holders) > 0 {
		t.Fatalf("bundle %+v: a backup knows of no holders", b)
	}
	if b, _ := backup.Bundle(refOf("otp@1"), "13.1"); len(b.Holders) != 1 {
		t.Fatal("the backup changed")
	}
	if r := now.applyEntry(now.entries[1]); !r.Replayed {
		t.Fatalf("an answer of this cluster was forgotten: %+v", r)
	}

	empty := New(nil)
	if s := old.machine.State().ForRestore(empty.State(), 0, Header{}); s.Cluster() != "old" || s.Generation() != 3 || s.Index() != 1 ||
		!s.Removed("old-removed") || s.Drained("old-server") || s.Version() != 1 {
		t.Fatalf("into an empty cluster: generation %d index %d cluster %s", s.Generation(), s.Index(), s.Cluster())
	}
}

// A snapshot of a cluster that knows more is no state to go on from, and can be read all the same.
func TestSnapshotOfALaterVersion(t *testing.T) {
	l := newLog(t)
	l.must(Init{Header: l.header(), ClusterID: "one"})
	before := l.machine.State()
	beyond := *before
	beyond.version = Version + 1
	snapshot := snapshotOf(t, newState(beyond))
	if err := l.machine.Restore(bytes.NewReader(snapshot)); !errors.Is(err, eboot.ErrInvalid) || l.machine.State() != before {
		t.Errorf("%v, and the state changed: %v", err, l.machine.State() != before)
	}
	if s, err := ReadState(bytes.NewReader(snapshot)); err != nil || s.Version() != Version+1 {
		t.Errorf("read: %v", err)
	}
}
