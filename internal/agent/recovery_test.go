package agent

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"eboot"
	"eboot/fsm"
	"eboot/internal/testutil"
)

// An old raft directory was put back: slaves keep what they were served, and nobody
// is told that a write was kept.
func TestCacheAheadOfRaft(t *testing.T) {
	t.Parallel()
	c := settings(t)
	raft := filepath.Join(c.DataDir, "raft")
	old := filepath.Join(t.TempDir(), "raft")

	s := start(t, c)
	s.allow(t, "10.0.0.1", "")
	s.stop(t)
	copyDir(t, raft, old)
	s = start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	newest := s.settled(t)
	s.stop(t)
	moveAway(t, c.DataDir, "raft")
	copyDir(t, old, raft)
	kept := blobs(t, c.DataDir)

	s = start(t, c)
	s.boots(t, "127.0.0.1", "1")
	if now := s.Status(); now.StateDigest != newest.StateDigest || now.Generation != newest.Generation {
		t.Errorf("serves generation %d, digest %s; had %d, %s", now.Generation, now.StateDigest, newest.Generation, newest.StateDigest)
	}
	s.refusesWrites(t, "the raft log ends at index")
	s.notReady(t, "remove serving-cache to go back to the log")
	if err := s.collectBlobs(t.Context()); !errors.Is(err, eboot.ErrNoLeader) {
		t.Errorf("collect by an old log: %v", err)
	}
	if now := blobs(t, c.DataDir); !slices.Equal(now, kept) {
		t.Errorf("%d blobs of %d are left", len(now), len(kept))
	}
	s.stop(t)

	// It stays so: what was served last is what the next start serves.
	s = start(t, c)
	if !s.whitelisted(t, "127.0.0.1") {
		t.Error("the second start went back to the log")
	}
	s.stop(t)

	moveAway(t, c.DataDir, "serving-cache")
	s = start(t, c)
	if s.whitelisted(t, "127.0.0.1") || !s.whitelisted(t, "10.0.0.1") {
		t.Error("without the cache the log is to be served")
	}
	s.ready(t)
	s.allow(t, "127.0.0.0/8", "")
}

// A damaged log keeps nobody from booting, and the way back that the manual
// describes needs no bundle to be published again.
func TestRaftLogDamaged(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	before := s.settled(t)
	s.stop(t)
	if err := os.WriteFile(filepath.Join(c.DataDir, "raft", "raft.db"), bytes.Repeat([]byte("garbage "), 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := blobs(t, c.DataDir)

	s = start(t, c)
	s.boots(t, "127.0.0.1", "1")
	s.refusesWrites(t, "raft could not be opened")
	s.notReady(t, "raft could not be opened")
	var snapshot bytes.Buffer
	info, err := s.client.SaveSnapshot(t.Context(), &snapshot)
	if err != nil || !info.Stale || info.Bundles != 1 || info.Generation != before.Generation {
		t.Fatalf("save: %+v, %v", info, err)
	}
	if state, err := fsm.ReadState(bytes.NewReader(snapshot.Bytes())); err != nil || state.Digest() != before.StateDigest {
		t.Errorf("the snapshot has another state: %v", err)
	}
	s.stop(t)

	moveAway(t, c.DataDir, "raft", "serving-cache", "founded")
	s = start(t, c)
	s.ready(t) // a new cluster, with nothing in it
	if s.Status().Generation != 0 || s.machine.State().Cluster() == before.Cluster {
		t.Errorf("status of the new cluster: %+v", s.Status())
	}
	if now := blobs(t, c.DataDir); !slices.Equal(now, kept) {
		t.Fatalf("%d blobs of %d are left before the restore", len(now), len(kept))
	}
	restored, err := s.client.RestoreSnapshot(t.Context(), &snapshot, false)
	if err != nil || restored.Stale || restored.Generation <= before.Generation {
		t.Fatalf("restore: %+v, %v", restored, err)
	}
	s.boots(t, "127.0.0.1", "1")
	s.ready(t)
	if err := s.collectBlobs(t.Context()); err != nil {
		t.Error(err)
	}
	if now := blobs(t, c.DataDir); !slices.Equal(now, kept) {
		t.Errorf("%d blobs of %d are left", len(now), len(kept))
	}
	s.allow(t, "10.0.0.1", "")
}

// A server that has lost log and cache has a past all the same: a cluster founded
// beside it would forget who may boot, and its first collection every blob.
func TestLogAndCacheLost(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	before := s.settled(t)
	s.stop(t)
	kept := blobs(t, c.DataDir)
	founded, err := os.ReadFile(filepath.Join(c.DataDir, "founded"))
	if err != nil || len(strings.TrimSpace(string(founded))) == 0 {
		t.Fatalf("founded: %q, %v", founded, err)
	}
	raft, safe := filepath.Join(c.DataDir, "raft"), filepath.Join(t.TempDir(), "raft")
	if err := os.Rename(raft, safe); err != nil {
		t.Fatal(err)
	}
	spoil(t, filepath.Join(c.DataDir, "serving-cache"))

	for range 2 { // the second start finds what the first one left behind
		s = start(t, c)
		s.refusesWrites(t, "the raft log is gone")
		s.notReady(t, "the raft log is gone")
		if id := s.machine.State().Cluster(); id != "" {
			t.Errorf("cluster %s was founded", id)
		}
		if _, ok := s.discover(t); ok {
			t.Error("a slave was answered out of nothing")
		}
		if err := s.collectBlobs(t.Context()); err == nil {
			t.Error("a server that knows no bundle collected blobs")
		}
		s.stop(t)
	}
	if now := blobs(t, c.DataDir); !slices.Equal(now, kept) {
		t.Fatalf("%d blobs of %d are left", len(now), len(kept))
	}
	if now, err := os.ReadFile(filepath.Join(c.DataDir, "founded")); err != nil || !bytes.Equal(now, founded) {
		t.Errorf("founded: %q, %v; was %q", now, err, founded)
	}

	moveAway(t, c.DataDir, "raft")
	copyDir(t, safe, raft)
	s = start(t, c)
	s.boots(t, "127.0.0.1", "1")
	if now := s.Status(); now.StateDigest != before.StateDigest {
		t.Errorf("state %s, was %s", now.StateDigest, before.StateDigest)
	}
}

// The raft directory of another cluster, with the id that goes with it: slaves keep what
// they were served, and the cache keeps it too.
func TestRaftLogOfAnotherCluster(t *testing.T) {
	t.Parallel()
	c, other := settings(t), settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	before := s.settled(t)
	s.stop(t)
	o := start(t, other)
	o.allow(t, "10.0.0.1", "")
	o.stop(t)
	kept := blobs(t, c.DataDir)
	moveAway(t, c.DataDir, "raft", "node-id")
	copyDir(t, filepath.Join(other.DataDir, "raft"), filepath.Join(c.DataDir, "raft"))
	id, err := os.ReadFile(filepath.Join(other.DataDir, "node-id"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.DataDir, "node-id"), id, 0o600); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second start serves what the first one left
		s = start(t, c)
		testutil.Poll(t, patience, "the log is to be replayed", func() bool { return s.machine.State().WhitelistSize() > 0 })
		s.boots(t, "127.0.0.1", "1")
		if now := s.Status(); now.StateDigest != before.StateDigest {
			t.Errorf("serves state %s, had %s", now.StateDigest, before.StateDigest)
		}
		s.refusesWrites(t, "the raft log is of cluster")
		s.notReady(t, "eboot cluster reset")
		if err := s.collectBlobs(t.Context()); !errors.Is(err, eboot.ErrNoLeader) {
			t.Errorf("collect by the log of another cluster: %v", err)
		}
		s.stop(t)
	}
	if now := blobs(t, c.DataDir); !slices.Equal(now, kept) {
		t.Errorf("%d blobs of %d are left", len(now), len(kept))
	}
	moveAway(t, c.DataDir, "founded") // who says so may follow the log
	s = start(t, c)
	testutil.Poll(t, patience, "the log is to be served", func() bool { return s.whitelisted(t, "10.0.0.1") && !s.whitelisted(t, "127.0.0.1") })
}

// A manifest that cannot be read is a bundle that the next start cannot serve,
// whatever is in memory; and what it names is not known, so that nothing is collected.
func TestDamagedManifest(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	manifest := s.publish(t, "1", eboot.DefaultChannel).Bundles[0].Manifest
	s.publish(t, "2", "")
	s.boots(t, "127.0.0.1", "1")
	s.ready(t)
	kept := len(blobs(t, c.DataDir))

	spoil(t, blobPath(c.DataDir, manifest))
	found, err := s.client.VerifyBundle(t.Context(), app("1"), nil)
	if err != nil || found.OK() || len(found.Damaged) != 1 || found.Damaged[0].Digest != manifest {
		t.Fatalf("verify: %+v, %v", found, err)
	}
	why := "bundle app@1 for ERTS " + testERTS
	unready := func() {
		t.Helper()
		s.notReady(t, why)
		if damaged := s.store.Damaged(); len(damaged) != 1 || damaged[0].Digest != manifest {
			t.Errorf("damaged: %+v", damaged)
		}
	}
	testutil.Poll(t, patience, "the damage is to be counted", func() bool { return !s.Readiness().Ready })
	unready()

	if _, err := s.client.RemoveBundle(t.Context(), app("2"), "", false); err != nil {
		t.Fatal(err)
	}
	testutil.Poll(t, patience, "the collection is to give up", func() bool {
		return strings.Contains(s.log.String(), "blobs were not collected")
	})
	unready()
	if now := len(blobs(t, c.DataDir)); now != kept-1 { // the manifest is in quarantine
		t.Errorf("%d blobs are left of %d", now, kept)
	}
	s.stop(t)

	s = start(t, c)
	unready()
	if _, ok := s.discover(t); ok {
		t.Error("a slave was answered for a bundle that cannot be served")
	}
	s.publish(t, "1", "")
	s.boots(t, "127.0.0.1", "1")
	s.ready(t)
	testutil.Poll(t, patience, "the collection is to succeed once it can", func() bool {
		return s.collectBlobs(t.Context()) == nil && !s.store.Has(eboot.DigestOf([]byte("code of 2")))
	})
}

// A snapshot that is restored is a new generation, and the state that Raft and the
// serving cache keep is the same after a restart.
func TestRestoredSnapshotSurvives(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	var snapshot bytes.Buffer
	saved, err := s.client.SaveSnapshot(t.Context(), &snapshot)
	if err != nil || saved.Stale {
		t.Fatalf("save: %+v, %v", saved, err)
	}
	s.publish(t, "2", eboot.DefaultChannel)
	s.allow(t, "10.0.0.1", "")
	before, index := s.Status().Generation, s.machine.State().Index()
	if before <= saved.Generation {
		t.Fatalf("generation %d after %d", before, saved.Generation)
	}
	if _, err := s.client.RestoreSnapshot(t.Context(), bytes.NewReader(snapshot.Bytes()), false); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("restore over a cluster in use: %v", err)
	}
	restored, err := s.client.RestoreSnapshot(t.Context(), &snapshot, true)
	if err != nil || restored.Generation != before+1 || restored.Bundles != 1 || restored.Entries != 1 || restored.Cluster != saved.Cluster || restored.Index <= index {
		t.Fatalf("restore after generation %d, index %d: %+v, %v", before, index, restored, err)
	}
	s.boots(t, "127.0.0.1", "1")
	s.allow(t, "10.0.0.2", "")
	after := s.Status()
	if after.Generation != restored.Generation+1 || after.StateDigest == restored.Digest {
		t.Errorf("a write after the restore: generation %d, digest %s", after.Generation, after.StateDigest)
	}
	s.stop(t)

	for _, lost := range []string{"", "serving-cache"} { // from the cache; from Raft alone
		if lost != "" {
			moveAway(t, c.DataDir, lost)
		}
		s = start(t, c)
		if !s.whitelisted(t, "10.0.0.2") || s.whitelisted(t, "10.0.0.1") {
			t.Error("the whitelist is not the restored one")
		}
		now := s.Status()
		if now.StateDigest != after.StateDigest || now.Generation != after.Generation {
			t.Errorf("without %q: generation %d, digest %s; want %d, %s", lost, now.Generation, now.StateDigest, after.Generation, after.StateDigest)
		}
		if check := s.Check(netip.MustParseAddr("127.0.0.1")); !check.Whitelisted {
			t.Error("127.0.0.1 is not whitelisted any more")
		}
		s.stop(t)
	}
}
