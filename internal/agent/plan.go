package agent

import (
	"errors"
	"runtime"
	"slices"
	"syscall"

	"eboot"
	"eboot/bootproto"
	"eboot/loader"
)

const (
	maxPlan     = 8 << 20  // bytes of files that a slave is sent ahead
	maxPlanned  = 2000     // files
	maxPlans    = 16       // plans of one tree that are kept
	maxFrames   = 16 << 20 // bytes of frames that are kept of one tree
	framesAfter = 4        // boots that a plan stays the same for before its frames are made
)

// plan is the files that boots of one kind are sent ahead. Its frames are made when it has
// lasted for a while: plans grow as boots are watched, and one that few slaves boot by is not
// worth the memory.
type plan struct {
	modules, learned []string // what it was made of
	paths            []string
	planned          map[string]bool // paths
	size             int64           // bytes of the files

	// Guarded by servedTree.mu.
	asked  int // how often, since frames were last tried to be made
	making bool
	frames *bootproto.Frames
	large  []string // files in the frames that are too large for the cache of the store
}

// plan returns the files that a boot of the script will need: the modules that it loads,
// then what earlier boots asked for, as much as a slave may be sent.
func (t *servedTree) plan(key eboot.PlanKey, learned []string) *plan {
	modules := t.moduleFiles(key)
	t.mu.Lock()
	p := t.plans[key]
	t.mu.Unlock()
	if p != nil && slices.Equal(p.modules, modules) && slices.Equal(p.learned, learned) {
		return p
	}
	fresh, settled := t.newPlan(modules, learned)
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.plans[key]; settled && (known || len(t.plans) < maxPlans) {
		t.plans[key] = fresh
	}
	return fresh
}

// newPlan makes a plan. It is settled when of every file it could be told what it is.
func (t *servedTree) newPlan(modules, learned []string) (p *plan, settled bool) {
	settled = true
	p = &plan{modules: modules, learned: learned, planned: make(map[string]bool, len(modules)+len(learned))}
	for _, paths := range [][]string{modules, learned} {
		for _, path := range paths {
			if len(p.paths) == maxPlanned || p.planned[path] {
				continue
			}
			info, err := t.Stat([]byte(path), true)
			if err != nil {
				_, final := errors.AsType[syscall.Errno](err)
				settled = settled && final
			}
			if err != nil || info.Kind != eboot.KindFile || p.size+info.Size > maxPlan {
				continue
			}
			p.planned[path] = true
			p.size += info.Size
			p.paths = append(p.paths, path)
		}
	}
	return p, settled
}

// frames returns the frames of a plan; nil: its files are to be fetched. What is in frames was
// verified when they were made. Large files are verified each time that they are sent, so
// here too: without one of them the others are not what the slave needs.
func (t *servedTree) frames(p *plan) *bootproto.Frames {
	t.mu.Lock()
	p.asked++
	frames, large := p.frames, p.large
	due := frames == nil && len(p.paths) > 0 && !p.making && p.asked >= framesAfter && t.framed.Load()+p.size <= maxFrames
	p.making = p.making || due
	t.mu.Unlock()
	if due {
		return t.makeFrames(p)
	}
	for _, path := range large {
		content, err := t.Get([]byte(path))
		if err != nil {
			return nil
		}
		if content.File != nil {
			_ = content.File.Close() // it was read only
		}
	}
	return frames
}

// makeFrames makes the frames of a plan, unless a file cannot be read now.
func (t *servedTree) makeFrames(p *plan) *bootproto.Frames {
	var large []string
	frames, err := bootproto.EncodeFrames(p.paths, func(path string) (bootproto.Content, error) {
		content, err := wireContent(t.Get([]byte(path)))
		if content.Reader != nil {
			large = append(large, path)
		}
		return content, err
	})
	if err != nil {
		t.logger.Warn("the files that slaves are sent ahead are sent one by one", "error", err)
	} else {
		framed := t.framed // the cleanup must not hold the tree, which holds the frames
		framed.Add(frames.Size())
		runtime.AddCleanup(frames, func(size int64) { framed.Add(-size) }, frames.Size())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p.asked, p.making = 0, false
	p.frames, p.large = frames, large
	return frames
}

// moduleFiles returns the files of the modules that a boot script loads by itself; none of
// a script that cannot be read, now or at all.
func (t *servedTree) moduleFiles(key eboot.PlanKey) []string {
	t.mu.Lock()
	files, ok := t.modules[key]
	t.mu.Unlock()
	if ok || key.Script == "" {
		return files
	}
	data, err := t.published([]byte(key.Script))
	if err != nil {
		return nil
	}
	if script, err := loader.Parse(data); err == nil {
		files = script.ModuleFiles(key.Embedded, t)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.modules) < maxScripts {
		t.modules[key] = files
	}
	return files
}
