package agent

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/filestore"
	"eboot/filestore/bundlefs"
	"eboot/loader"
)

const (
	maxScript   = 16 << 20 // bytes of a boot script that is rewritten; that of OTP has 7,000
	maxScripts  = 256      // of one tree, rewritten ones that are kept
	maxPacked   = 16 << 20 // bytes of compressed contents that are kept of one tree
	leastPacked = 512      // bytes of a content that is worth compressing
	packedCost  = 256      // bytes that a kept one takes beside its content
)

// servedTree is a bundle's tree, and what is made of it for slaves that run our loader: most
// of it when it is first wanted. It is kept as long as the tree. Paths are those of files, with no symlink
// in them, so that a slave cannot ask for one thing by many names.
type servedTree struct {
	*bundlefs.Tree
	logger hclog.Logger

	index  func() []byte // the metadata of the tree, as loader.EncodeTree writes it
	making sync.Mutex    // held while a script is rewritten: one at a time

	mu      sync.Mutex
	scripts map[scriptKey]rewrittenScript
	modules map[eboot.PlanKey][]string
	plans   map[eboot.PlanKey]*plan
	packed  map[string][]byte // compressed contents by path; nil: not worth it
	kept    int               // bytes of them

	framed *atomic.Int64 // bytes of the frames of plans, until nobody has them any more
}

// scriptKey is what a rewritten script depends on, beside the tree.
type scriptKey struct {
	bundle eboot.Ref
	erts   string
	path   string
}

// rewrittenScript is a boot script as slaves get it. With err set that is the script
// as it was published.
type rewrittenScript struct {
	content []byte
	err     error
}

func newServedTree(tree *bundlefs.Tree, logger hclog.Logger) *servedTree {
	return &servedTree{
		Tree: tree, logger: logger, index: sync.OnceValue(func() []byte { return loader.EncodeTree(nodes(tree)) }),
		scripts: map[scriptKey]rewrittenScript{}, modules: map[eboot.PlanKey][]string{}, plans: map[eboot.PlanKey]*plan{}, packed: map[string][]byte{},
		framed: new(atomic.Int64),
	}
}

func nodes(tree *bundlefs.Tree) iter.Seq[loader.Node] {
	return func(yield func(loader.Node) bool) {
		for path, info := range tree.All() {
			if !yield(loader.Node{Path: path, Kind: info.Kind, Size: info.Size, ModTime: info.ModTime, Exec: info.Exec}) {
				return
			}
		}
	}
}

// script returns the boot script at path as the slaves of b get it: with our loader, or as
// it was published when it cannot be read.
func (t *servedTree) script(b eboot.Bundle, path string, published []byte) rewrittenScript {
	key := scriptKey{b.Ref(), b.ERTS, path}
	if done, ok := t.rewritten(key); ok {
		return done
	}
	t.making.Lock()
	defer t.making.Unlock()
	if done, ok := t.rewritten(key); ok {
		return done
	}
	done := rewrittenScript{content: published}
	rewritten, err := loader.Rewrite(published, loader.Rewriting{
		Digest: b.Manifest, Bundle: b.Ref(), Script: path, ERTS: b.ERTS, SysConfig: b.SysConfig != "", Provider: t.provider(b), Tree: t,
	})
	if err != nil {
		done.err = fmt.Errorf("boot script %s is served as it was published: %w: %w", path, err, eboot.ErrInvalid)
		t.logger.Warn("a boot script cannot bring eboot's loader; it is served as it was published",
			"bundle", b.Ref(), "erts", b.ERTS, "script", path, "error", err)
	} else {
		done.content = rewritten
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.scripts) < maxScripts {
		t.scripts[key] = done
	}
	return done
}

// provider looks for one in the bundle's sys.config. One that cannot be read now has none.
func (t *servedTree) provider(b eboot.Bundle) loader.Provider {
	if b.SysConfig == "" {
		return loader.Provider{}
	}
	content, err := t.published([]byte(b.SysConfig))
	if err != nil {
		return loader.Provider{}
	}
	return loader.FindProvider(content, path.Dir(b.SysConfig))
}

func (t *servedTree) rewritten(key scriptKey) (rewrittenScript, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	done, ok := t.scripts[key]
	return done, ok
}

// published reads the boot script at a name of the tree.
func (t *servedTree) published(name []byte) ([]byte, error) {
	content, err := t.Get(name)
	if err != nil {
		return nil, err
	}
	return readScript(content)
}

// readScript reads and closes the content of a boot script.
func readScript(content filestore.Content) ([]byte, error) {
	if content.File == nil {
		return content.Data, nil
	}
	defer content.File.Close() //nolint:errcheck // it was read only
	if content.Size > maxScript {
		return nil, fmt.Errorf("boot script of %d bytes, at most %d are rewritten: %w", content.Size, maxScript, eboot.ErrInvalid)
	}
	data, err := io.ReadAll(io.LimitReader(content.File, content.Size))
	if err != nil {
		return nil, fmt.Errorf("read a boot script: %v: %w", err, eboot.ErrUnavailable)
	}
	return data, nil
}

// pack returns the content at name compressed; false when that is not worth it.
func (t *servedTree) pack(name, content []byte) ([]byte, bool) {
	path, _, isFile := t.Resolve(name)
	if !isFile || len(content) < leastPacked {
		return nil, false
	}
	t.mu.Lock()
	packed, known := t.packed[path]
	full := t.kept >= maxPacked
	t.mu.Unlock()
	if known || full {
		return packed, packed != nil
	}
	if packed = loader.Pack(content); len(packed) > len(content)-len(content)/10 {
		packed = nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.packed[path]; !known {
		t.packed[path] = packed
		t.kept += len(packed) + packedCost
	}
	return packed, packed != nil
}

// shownScripts answers the API about boot scripts.
type shownScripts struct{ trees *treeSet }

var _ scriptSource = shownScripts{}

func (s shownScripts) rewritten(b eboot.Bundle) (path string, before, after []byte, err error) {
	path = b.BootScript
	tree, err := s.trees.tree(b)
	if err != nil {
		return path, nil, nil, err
	}
	if before, err = tree.published([]byte(path)); err != nil {
		return path, nil, nil, err
	}
	done := tree.script(b, path, before)
	return path, before, done.content, done.err
}

func (shownScripts) text(script []byte) (string, error) {
	text, err := loader.Text(script)
	if errors.Is(err, loader.ErrScript) {
		return "", fmt.Errorf("%w: %w", err, eboot.ErrInvalid)
	}
	return text, err
}
