package agent

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/singleflight"

	"eboot"
	"eboot/filestore"
	"eboot/filestore/bundlefs"
	"eboot/fsm"
)

// bundleKey tells apart bundles that share a tree but not a boot script.
type bundleKey struct {
	manifest   eboot.Digest
	bootScript string
	sysConfig  string
}

func keyOf(b eboot.Bundle) bundleKey {
	return bundleKey{manifest: b.Manifest, bootScript: b.BootScript, sysConfig: b.SysConfig}
}

// residence is a tree in memory and how much of it is on this disk.
type residence struct {
	tree    *servedTree // nil: the manifest itself is not readable
	blobs   int
	missing int // blobs not on disk or damaged; with a nil tree 1
	problem string
}

func (r residence) complete() bool { return r.tree != nil && r.missing == 0 }

// treeSet holds the trees of every bundle that a channel points to, and those
// that pinned slaves still read; another is loaded when a connection needs it. Readers take an immutable map; changes are
// serialised by the mutex.
type treeSet struct {
	store  *filestore.Store
	roots  []string
	logger hclog.Logger

	mu      sync.Mutex
	current atomic.Pointer[map[bundleKey]residence]
	loading singleflight.Group
}

func newTreeSet(store *filestore.Store, roots []string, logger hclog.Logger) *treeSet {
	t := &treeSet{store: store, roots: roots, logger: logger}
	t.current.Store(&map[bundleKey]residence{})
	return t
}

// residence returns what is known of a bundle; false: its tree is not loaded.
func (t *treeSet) residence(b eboot.Bundle) (residence, bool) {
	r, ok := (*t.current.Load())[keyOf(b)]
	return r, ok
}

// tree returns the tree of b, loading it when a pinned slave asks for one that
// no channel points to any more.
func (t *treeSet) tree(b eboot.Bundle) (*servedTree, error) {
	if r, ok := t.residence(b); ok && r.tree != nil {
		return r.tree, nil
	}
	key := keyOf(b)
	loaded, err, _ := t.loading.Do(fmt.Sprint(key), func() (any, error) {
		tree, err := t.load(b)
		if err != nil {
			return nil, err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		next := maps.Clone(*t.current.Load())
		next[key] = t.inspect(key, tree)
		t.current.Store(&next)
		return tree, nil
	})
	if err != nil {
		return nil, err
	}
	return loaded.(*servedTree), nil
}

func (t *treeSet) load(b eboot.Bundle) (*servedTree, error) {
	manifest, err := t.readManifest(b)
	if err != nil {
		return nil, err
	}
	times := t.readTimes(b, len(manifest.Entries))
	tree, err := bundlefs.New(bundlefs.Options{Roots: t.roots, Bundle: b, Manifest: manifest, Times: times, Blobs: t.store})
	if err != nil {
		return nil, err
	}
	return newServedTree(tree, t.logger), nil
}

func (t *treeSet) readManifest(b eboot.Bundle) (*eboot.Manifest, error) {
	data, err := t.store.Read(b.Manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", b.Ref(), err)
	}
	manifest, err := eboot.ParseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", b.Ref(), err)
	}
	return manifest, nil
}

// readTimes falls back to the time of the publish: times are not part of a
// bundle's identity, and not worth a slave that cannot boot.
func (t *treeSet) readTimes(b eboot.Bundle, n int) []int64 {
	data, err := t.store.Read(b.Times)
	if err == nil {
		var times []int64
		if times, err = eboot.ParseTimes(data, n); err == nil {
			return times
		}
	}
	t.logger.Warn("modification times are not readable; showing the time of the publish", "bundle", b.Ref(), "error", err)
	return slices.Repeat([]int64{b.PublishedAt.Unix()}, n)
}

// inspect counts what of a bundle is on this disk, its manifest included: a tree in
// memory hides that the next start could not read it.
func (t *treeSet) inspect(key bundleKey, tree *servedTree) residence {
	r := residence{tree: tree}
	count := func(d eboot.Digest) {
		r.blobs++
		if !t.store.Has(d) {
			r.missing++
		}
	}
	count(key.manifest)
	for d := range tree.Blobs() {
		count(d)
	}
	if r.missing > 0 {
		r.problem = fmt.Sprintf("%d of %d blobs are missing or damaged", r.missing, r.blobs)
	}
	return r
}

// follow loads the trees of the bundles that channels point to. It keeps those that
// pinned slaves may still read, and lets go of the rest. It reports whether every tree
// could be loaded. state is asked for under the lock, so that an older one never
// overtakes a newer one. What is on disk is looked at again only with recount, which is
// for a change of the disk: the state alone changes nothing there.
func (t *treeSet) follow(state func() *fsm.State, pinned func() map[eboot.Digest]bool, recount bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, keep := state(), pinned()
	next := make(map[bundleKey]residence)
	loaded := true
	for b := range channelBundles(now) {
		r := t.renew(b, recount)
		loaded = loaded && r.tree != nil
		next[keyOf(b)] = r
	}
	for _, b := range now.Bundles() {
		if _, done := next[keyOf(b)]; done || !keep[b.Manifest] {
			continue
		}
		if old, ok := t.residence(b); ok && old.tree != nil {
			next[keyOf(b)] = t.renew(b, recount)
		}
	}
	t.current.Store(&next)
	return loaded
}

// renew brings what is known of a bundle up to date, and logs when that is worse
// than it was.
func (t *treeSet) renew(b eboot.Bundle, recount bool) residence {
	old, _ := t.residence(b)
	if old.tree != nil && !recount {
		return old
	}
	next := residence{tree: old.tree, missing: 1}
	if next.tree == nil {
		tree, err := t.load(b)
		if err != nil {
			next.problem = err.Error()
		}
		next.tree = tree
	}
	if next.tree != nil {
		next = t.inspect(keyOf(b), next.tree)
	}
	if next.problem != "" && next.problem != old.problem {
		t.logger.Error("bundle cannot be served from here", "bundle", b.Ref(), "erts", b.ERTS, "problem", next.problem)
	}
	return next
}

// channelBundles yields each bundle that some channel points to or that is being rolled out
// on one, once for each ERTS version: two versions may share one tree, and two names may, of
// which one is yielded.
func channelBundles(state *fsm.State) iter.Seq[eboot.Bundle] {
	type served struct {
		tree bundleKey
		erts string
	}
	return func(yield func(eboot.Bundle) bool) {
		seen := map[served]bool{}
		for b := range bootable(state) {
			one := served{keyOf(b), b.ERTS}
			if !seen[one] && !yield(b) {
				return
			}
			seen[one] = true
		}
	}
}

// bootable yields what channelBundles does, every name of it.
func bootable(state *fsm.State) iter.Seq[eboot.Bundle] {
	return func(yield func(eboot.Bundle) bool) {
		type named struct {
			ref  eboot.Ref
			erts string
		}
		seen := map[named]bool{}
		first := func(b eboot.Bundle) bool {
			one := named{b.Ref(), b.ERTS}
			known := seen[one]
			seen[one] = true
			return !known
		}
		for _, c := range state.Channels() {
			for erts, ref := range c.Bundles {
				if b, ok := state.Bundle(ref, erts); ok && first(b) && !yield(b) {
					return
				}
			}
		}
		for _, r := range activeRollouts(state) {
			for _, b := range state.BundlesOf(r.Target) {
				if _, moves := state.RolloutBundle(&r, b.ERTS); moves && first(b) && !yield(b) {
					return
				}
			}
		}
	}
}
