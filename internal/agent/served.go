package agent

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/filestore"
	"eboot/filestore/bundlefs"
	"eboot/loader"
)

const (
	maxScript   = 16 << 20 // bytes of a boot script that is rewritten
	maxScripts  = 256      // of one tree, rewritten ones that are kept
	maxPlan     = 8 << 20  // bytes of files that a slave is sent ahead
	maxPlanned  = 2000     // files
	maxPacked   = 16 << 20 // bytes of compressed contents that are kept of one tree
	leastPacked = 512      // bytes of a content that is worth compressing
)

// servedTree is a bundle's tree, and what is made of it for slaves that run our loader.
// All of that is made when it is first wanted, and kept as long as the tree.
type servedTree struct {
	*bundlefs.Tree
	logger hclog.Logger

	index func() []byte // the metadata of the whole tree, as loader.EncodeTree writes it

	mu      sync.Mutex
	scripts map[scriptKey]rewrittenScript
	plans   map[planKey][]string
	packed  map[string][]byte // compressed contents by path; nil: not worth it
	kept    int               // bytes of them
}

// scriptKey is what a rewritten script depends on, beside the tree.
type scriptKey struct {
	bundle eboot.Ref
	erts   string
	path   string
}

type planKey struct {
	script   string
	embedded bool
}

// rewrittenScript is a boot script as slaves get it. With err set that is the script
// as it was published.
type rewrittenScript struct {
	content []byte
	err     error
}

func newServedTree(tree *bundlefs.Tree, logger hclog.Logger) *servedTree {
	t := &servedTree{
		Tree: tree, logger: logger,
		scripts: map[scriptKey]rewrittenScript{}, plans: map[planKey][]string{}, packed: map[string][]byte{},
	}
	t.index = sync.OnceValue(func() []byte { return loader.EncodeTree(nodes(tree)) })
	return t
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
	t.mu.Lock()
	defer t.mu.Unlock()
	if done, ok := t.scripts[key]; ok {
		return done
	}
	done := rewrittenScript{content: published}
	rewritten, err := loader.Rewrite(published, loader.Rewriting{
		Digest: b.Manifest, Bundle: b.Ref(), Script: path, ERTS: b.ERTS, SysConfig: b.SysConfig != "", Tree: t,
	})
	if err != nil {
		done.err = fmt.Errorf("boot script %s is served as it was published: %w: %w", path, err, eboot.ErrInvalid)
		t.logger.Warn("a boot script cannot bring eboot's loader; it is served as it was published",
			"bundle", b.Ref(), "erts", b.ERTS, "script", path, "error", err)
	} else {
		done.content = rewritten
	}
	if len(t.scripts) < maxScripts {
		t.scripts[key] = done
	}
	return done
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
		return nil, fmt.Errorf("boot script of %d bytes, at most %d are rewritten: %w", content.Size, maxScript, eboot.ErrTooLarge)
	}
	data, err := io.ReadAll(io.LimitReader(content.File, content.Size))
	if err != nil {
		return nil, fmt.Errorf("read a boot script: %v: %w", err, eboot.ErrUnavailable)
	}
	return data, nil
}

// plan returns the files that a boot of the script will need: the modules that it loads,
// then what earlier boots asked for, as much as a slave may be sent.
func (t *servedTree) plan(script string, embedded bool, learned []string) []string {
	modules := t.modules(planKey{script, embedded})
	plan := make([]string, 0, len(modules)+len(learned))
	seen := make(map[string]bool, cap(plan))
	size := int64(0)
	for _, paths := range [][]string{modules, learned} {
		for _, path := range paths {
			if len(plan) == maxPlanned || seen[path] {
				continue
			}
			info, err := t.Stat([]byte(path), true)
			if err != nil || info.Kind != eboot.KindFile || size+info.Size > maxPlan {
				continue
			}
			seen[path] = true
			size += info.Size
			plan = append(plan, path)
		}
	}
	return plan
}

// modules returns the files of the modules that a boot script loads by itself.
func (t *servedTree) modules(key planKey) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if files, ok := t.plans[key]; ok {
		return files
	}
	var files []string
	if data, err := t.published([]byte(key.script)); err == nil {
		if script, err := loader.Parse(data); err == nil {
			files = script.ModuleFiles(key.embedded, t)
		}
	}
	if len(t.plans) < maxScripts {
		t.plans[key] = files
	}
	return files
}

// pack returns the content of path compressed; false when that is not worth it.
func (t *servedTree) pack(path string, content []byte) ([]byte, bool) {
	if len(content) < leastPacked {
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
		t.kept += len(packed) + len(path)
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
