package agent

import (
	"bytes"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/api"
	"eboot/bootproto"
	"eboot/internal/testutil"
)

// planned is a server with one bundle, and a tree of it of the test's own.
func planned(t *testing.T, more files) (*server, *servedTree, eboot.PlanKey) {
	t.Helper()
	s := start(t, settings(t))
	source := release("1")
	for name, content := range more {
		source[name] = content
	}
	outcome, err := s.client.Publish(t.Context(), api.Publish{
		Ref: app("1"), ERTS: []string{testERTS}, BootScript: "releases/1/start.boot", Channel: eboot.DefaultChannel, Source: source,
	})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.trees.tree(outcome.Bundles[0])
	if err != nil {
		t.Fatal(err)
	}
	return s, newServedTree(tree.Tree, hclog.NewNullLogger()), eboot.PlanKey{Manifest: outcome.Bundles[0].Manifest, Script: "releases/1/start.boot"}
}

// Frames are made of a plan that has lasted, and not of one that still grows; the
// memory of both is given back with the tree.
func TestFramesOfAPlan(t *testing.T) {
	large := strings.Repeat("large", 100_000)
	s, tree, key := planned(t, files{"lib/app-1/priv/large": large})
	ask := func(learned ...string) *bootproto.Frames {
		t.Helper()
		p := tree.plan(key, learned)
		if !slices.Equal(p.paths, learned) || len(p.planned) != len(learned) {
			t.Fatalf("the plan is %q, want %q", p.paths, learned)
		}
		return tree.frames(p)
	}
	lasts := func(learned ...string) (frames *bootproto.Frames) {
		t.Helper()
		for i := range framesAfter {
			if frames = ask(learned...); (frames != nil) != (i == framesAfter-1) {
				t.Fatalf("boot %d by %q: frames: %v", i, learned, frames != nil)
			}
		}
		if again := ask(learned...); again != frames {
			t.Error("frames of the same plan are made again")
		}
		return frames
	}
	const beam, other, big = "lib/app-1/ebin/m.beam", "lib/app-1/priv/constant", "lib/app-1/priv/large"
	one := lasts(beam).Size()
	two := lasts(beam, other).Size()
	grown := lasts(beam, other, big)
	if one >= two || two+int64(len(large)) >= grown.Size() {
		t.Errorf("frames of %d, %d and %d bytes", one, two, grown.Size())
	}
	if held := tree.framed.Load(); held < grown.Size() || held > one+two+grown.Size() {
		t.Errorf("%d bytes are held, %d of the present plan", held, grown.Size())
	}

	if err := os.Remove(blobPath(s.config.DataDir, eboot.DigestOf([]byte(large)))); err != nil {
		t.Fatal(err)
	}
	if ask(beam, other, big) != nil {
		t.Error("frames of a large file that was lost")
	}

	tree.framed.Add(maxFrames)
	for range 3 * framesAfter {
		if ask(other) != nil {
			t.Fatal("frames that there is no room for")
		}
	}
	tree.framed.Add(-maxFrames)
	if ask(other) == nil {
		t.Error("no frames as soon as there is room for them")
	}

	framed := tree.framed
	tree, grown = nil, nil
	testutil.Poll(t, patience, "the frames are to go with the tree", func() bool { runtime.GC(); return framed.Load() == 0 })
}

// A file that cannot be had when frames are to be made is fetched, as without frames. It is
// tried again.
func TestFramesOfALostFile(t *testing.T) {
	const name = "lib/app-1/priv/lost"
	content := strings.Repeat("x", 300<<10)
	s, tree, key := planned(t, files{name: content})
	blob := blobPath(s.config.DataDir, eboot.DigestOf([]byte(content)))
	lost, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	spoil(t, blob)
	for range 3 * framesAfter {
		if tree.frames(tree.plan(key, []string{name})) != nil {
			t.Fatal("frames of a damaged file")
		}
	}
	if _, err := s.store.Content(eboot.DigestOf(lost), int64(len(lost))); err == nil {
		t.Error("the damage was not found")
	}
	ingest := s.store.Ingest()
	defer ingest.Close() //nolint:errcheck // what was committed stays
	if err := ingest.Put(t.Context(), eboot.DigestOf(lost), int64(len(lost)), bytes.NewReader(lost)); err != nil {
		t.Fatal(err)
	}
	if err := ingest.Commit(); err != nil {
		t.Fatal(err)
	}
	for i := range framesAfter {
		if frames := tree.frames(tree.plan(key, []string{name})); i == framesAfter-1 && frames == nil {
			t.Error("no frames of a file that was healed")
		}
	}
}

// A plan that a file is missing from because nothing is known of it now is made again.
func TestUnsettledPlan(t *testing.T) {
	s, tree, key := planned(t, files{"lib/y.ez": "PK"})
	blob := blobPath(s.config.DataDir, eboot.DigestOf([]byte("PK")))
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	const beam = "lib/app-1/ebin/m.beam"
	for range 2 {
		if p := tree.plan(key, []string{beam, "lib/y.ez/y/a.beam"}); !slices.Equal(p.paths, []string{beam}) || len(tree.plans) > 0 {
			t.Errorf("planned %q, kept %d", p.paths, len(tree.plans))
		}
	}
	// What is known not to be there is settled.
	if p := tree.plan(key, []string{beam, "lib/none"}); !slices.Equal(p.paths, []string{beam}) || tree.plans[key] != p {
		t.Errorf("planned %q", p.paths)
	}
	for i := range 2 * maxPlans {
		key.Script = strings.Repeat("x", i)
		tree.plan(key, []string{beam})
	}
	if len(tree.plans) != maxPlans {
		t.Errorf("%d plans are kept", len(tree.plans))
	}
}
