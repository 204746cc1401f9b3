package agent

import (
	"errors"
	"io"
	"strings"
	"testing"

	"eboot"
	"eboot/api"
)

// early puts what open wants of f while "it is read", and returns how many blobs that were.
func early(t *testing.T, open *api.OpenPublish, f files) (n int) {
	t.Helper()
	err := f.Blobs(t.Context(), open.Want, func(d eboot.Digest, size int64, r io.Reader) error {
		n++
		return open.Put(d, size, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (s *server) openPublish(t *testing.T) *api.OpenPublish {
	t.Helper()
	open, err := s.client.OpenPublish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(open.Close)
	return open
}

func publishing(version string) api.Publish {
	return api.Publish{Ref: app(version), ERTS: []string{testERTS}, BootScript: "releases/1/start.boot", Source: release(version)}
}

// Blobs travel before the manifest, and only those that the server lacks; what the
// manifest does not name is dropped.
func TestBlobsComeBeforeTheManifest(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	open := s.openPublish(t)
	if n := early(t, open, release("1")); n != 3 {
		t.Errorf("%d blobs were wanted of a tree that is new, want 3", n)
	}
	if n := early(t, open, release("1")); n != 0 {
		t.Errorf("%d blobs were wanted a second time", n)
	}
	early(t, open, files{"stranger": "not in the manifest"})
	outcome, err := open.Publish(t.Context(), publishing("1"))
	if err != nil || outcome.SentBlobs != 4 || !outcome.Changed {
		t.Fatalf("%+v, %v", outcome, err)
	}
	if s.store.Has(eboot.DigestOf([]byte("not in the manifest"))) {
		t.Error("a blob that no manifest names was kept")
	}
	if result, err := s.client.VerifyBundle(t.Context(), app("1"), nil); err != nil || !result.OK() {
		t.Errorf("%+v, %v", result, err)
	}

	open = s.openPublish(t)
	if n := early(t, open, release("1")); n != 0 {
		t.Errorf("%d blobs were wanted of a tree that is there", n)
	}
	if outcome, err := open.Publish(t.Context(), publishing("1")); err != nil || outcome.SentBlobs != 0 || outcome.Changed {
		t.Errorf("the same again: %+v, %v", outcome, err)
	}
	open = s.openPublish(t)
	if n := early(t, open, release("2")); n != 2 {
		t.Errorf("%d blobs were wanted of a tree of which one is there, want 2", n)
	}
	if outcome, err := open.Publish(t.Context(), publishing("2")); err != nil || outcome.SentBlobs != 2 {
		t.Errorf("the next version: %+v, %v", outcome, err)
	}
}

// What the client was told is there may be gone, and the whole publish forgotten: it
// is sent after the manifest.
func TestBlobsComeAfterTheManifest(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	open := s.openPublish(t)
	early(t, open, release("1"))
	for _, one := range s.publishes.forget(s.now().Add(publishIdle)) {
		if err := one.close(); err != nil {
			t.Error(err)
		}
	}
	if outcome, err := open.Publish(t.Context(), publishing("1")); err != nil || !outcome.Changed || outcome.SentBlobs < 3 {
		t.Errorf("forgotten with blobs under way: %+v, %v", outcome, err)
	}
	open = s.openPublish(t)
	for _, one := range s.publishes.forget(s.now().Add(publishIdle)) {
		if err := one.close(); err != nil {
			t.Error(err)
		}
	}
	if outcome, err := open.Publish(t.Context(), publishing("2")); err != nil || !outcome.Changed || outcome.SentBlobs < 2 {
		t.Errorf("forgotten while the tree was read: %+v, %v", outcome, err)
	}
}

// A publish that is given up leaves nothing.
func TestAbandonedPublishLeavesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	open := s.openPublish(t)
	big := strings.Repeat("x", 1<<20) // more than a batch: it is on its way
	early(t, open, files{"big": big})
	open.Close()
	if n := s.store.Summary().Blobs; n != 0 || len(s.publishes.open) != 0 {
		t.Errorf("%d blobs and %d publishes are left", n, len(s.publishes.open))
	}
}

// What may come before a manifest has the bounds of a tree, and there is one manifest.
func TestPublishWithoutManifest(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	opened, err := s.OpenPublish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CommitPublish(t.Context(), opened.ID, api.Write{RequestID: "x"}, api.PublishCommit{}); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("commit without a manifest: %v", err)
	}
	if err := s.PutBlob(t.Context(), opened.ID, eboot.DigestOf([]byte("a")), 1, strings.NewReader("b")); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("a blob of another digest: %v", err)
	}
	one, err := s.publishes.find(opened.ID)
	if err != nil {
		t.Fatal(err)
	}
	one.earlyBytes.Store(eboot.MaxTreeBytes)
	if err := s.PutBlob(t.Context(), opened.ID, eboot.DigestOf([]byte("a")), 1, strings.NewReader("a")); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("more bytes than a tree has: %v", err)
	}
	one.earlyBytes.Store(0)
	one.earlyBlobs.Store(eboot.MaxTreeEntries)
	if err := s.PutBlob(t.Context(), opened.ID, eboot.DigestOf([]byte("a")), 1, strings.NewReader("a")); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("more blobs than a tree has: %v", err)
	}
	if _, err := s.DescribePublish(t.Context(), opened.ID, release("1").request("1")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DescribePublish(t.Context(), opened.ID, release("1").request("1")); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("a second manifest: %v", err)
	}
	if err := s.PutBlob(t.Context(), opened.ID, eboot.DigestOf([]byte("a")), 1, strings.NewReader("a")); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("a blob that is not in the manifest: %v", err)
	}
}
