package fleet

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"unicode"

	"eboot"
)

// planLimits bound a planTable.
type planLimits struct {
	plans int
	files int   // of one plan
	bytes int64 // of one plan: the sizes of its files
	text  int   // of one plan: the lengths of its paths
}

// standardPlans allow a plan what a slave may be sent unasked. A path has some 50 bytes.
var standardPlans = planLimits{plans: 64, files: 2000, bytes: 8 << 20, text: 256 << 10}

// planTable holds the plans, the longest unused of which are forgotten. It is safe for
// use by several goroutines.
type planTable struct {
	limits planLimits

	mu      sync.Mutex
	byKey   map[eboot.PlanKey]*plan
	uses    uint64 // so far, of plans and of files
	version uint64 // rises with every change that the file should have
}

// plan is guarded by planTable.mu.
type plan struct {
	files  []*learnedFile // in the order first learned
	byPath map[string]*learnedFile
	bytes  int64
	text   int
	used   uint64 // planTable.uses when it was asked for or learned last; different for each plan
	known  bool   // its bundle is known here, or was; else another server may be ahead of this one
}

type learnedFile struct {
	eboot.PlanFile
	used uint64 // planTable.uses when it was learned last; 0: not here
}

func newPlanTable(limits planLimits) *planTable {
	return &planTable{limits: limits, byKey: map[eboot.PlanKey]*plan{}}
}

// checkPlanKey and check say what is left out: what no bundle has, what would not be
// written to the file as it is, and what alone is more than a plan may hold.
func checkPlanKey(k eboot.PlanKey) error {
	if k.Manifest.IsZero() {
		return fmt.Errorf("names no manifest: %w", eboot.ErrInvalid)
	}
	return checkPlanPath(k.Script)
}

func checkPlanPath(path string) error {
	if strings.ContainsFunc(path, unicode.IsControl) {
		return fmt.Errorf("path %q: has a control character: %w", path[:min(len(path), 80)], eboot.ErrInvalid)
	}
	return eboot.CheckTreePath(path)
}

func (l planLimits) check(file eboot.PlanFile) error {
	if file.Size < 0 || file.Size > l.bytes {
		return fmt.Errorf("size %d: want 0 to %d: %w", file.Size, l.bytes, eboot.ErrTooLarge)
	}
	if len(file.Path) > l.text {
		return fmt.Errorf("path of %d bytes: at most %d: %w", len(file.Path), l.text, eboot.ErrTooLarge)
	}
	return checkPlanPath(file.Path)
}

// learn enters a file, or notes that it was used again, and reports whether the plan changed.
func (t *planTable) learn(key eboot.PlanKey, path string, size int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.uses++
	p := t.byKey[key]
	if p != nil {
		p.used, p.known = t.uses, true
		if known := p.byPath[path]; known != nil {
			known.used = t.uses
			return false
		}
	}
	file := eboot.PlanFile{Path: path, Size: size}
	if t.limits.check(file) != nil {
		return false
	}
	if p == nil {
		if checkPlanKey(key) != nil {
			return false
		}
		p = t.enter(key)
		p.known = true
	}
	p.add(file, t.uses)
	for !p.within(t.limits) {
		p.dropLongestUnused()
	}
	t.version++
	return true
}

// merge enters those files that are not known as far as there is room for them, so that two
// servers with full tables do not swap them for ever. It returns how many it entered.
func (t *planTable) merge(key eboot.PlanKey, files []eboot.PlanFile) (entered int) {
	if checkPlanKey(key) != nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byKey[key]
	for _, file := range files {
		if t.limits.check(file) != nil || p != nil && (p.byPath[file.Path] != nil || !p.room(t.limits, file)) {
			continue
		}
		if p == nil {
			if len(t.byKey) >= t.limits.plans {
				return 0
			}
			p = t.enter(key)
		}
		p.add(file, 0)
		entered++
	}
	if entered > 0 {
		t.version++
	}
	return entered
}

// enter adds an empty plan, in place of the longest unused one when there are too many.
func (t *planTable) enter(key eboot.PlanKey) *plan {
	for len(t.byKey) >= t.limits.plans {
		var oldest eboot.PlanKey
		least := uint64(math.MaxUint64)
		for k, p := range t.byKey {
			if p.used < least {
				oldest, least = k, p.used
			}
		}
		delete(t.byKey, oldest)
	}
	t.uses++
	key.Script = strings.Clone(key.Script) // it may be part of something large
	p := &plan{byPath: map[string]*learnedFile{}, used: t.uses}
	t.byKey[key] = p
	return p
}

func (p *plan) add(file eboot.PlanFile, used uint64) {
	file.Path = strings.Clone(file.Path)
	learned := &learnedFile{PlanFile: file, used: used}
	p.files = append(p.files, learned)
	p.byPath[file.Path] = learned
	p.bytes += file.Size
	p.text += len(file.Path)
}

func (p *plan) within(l planLimits) bool {
	return len(p.files) <= l.files && p.bytes <= l.bytes && p.text <= l.text
}

func (p *plan) room(l planLimits, file eboot.PlanFile) bool {
	return len(p.files) < l.files && p.bytes+file.Size <= l.bytes && p.text+len(file.Path) <= l.text
}

// dropLongestUnused drops one file; of those that were never used here, the one learned last.
func (p *plan) dropLongestUnused() {
	oldest := 0
	for i, file := range p.files {
		if file.used <= p.files[oldest].used {
			oldest = i
		}
	}
	file := p.files[oldest]
	p.files = slices.Delete(p.files, oldest, oldest+1)
	delete(p.byPath, file.Path)
	p.bytes -= file.Size
	p.text -= len(file.Path)
}

// paths returns the plan of key and notes that it was used.
func (t *planTable) paths(key eboot.PlanKey) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byKey[key]
	if p == nil {
		return nil
	}
	t.uses++
	p.used = t.uses
	paths := make([]string, len(p.files))
	for i, file := range p.files {
		paths[i] = file.Path
	}
	return paths
}

// all returns the plans, longest unused first, and the version they are of.
func (t *planTable) all() ([]eboot.LearnedPlan, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := make([]eboot.PlanKey, 0, len(t.byKey))
	for key := range t.byKey {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b eboot.PlanKey) int { return cmp.Compare(t.byKey[a].used, t.byKey[b].used) })
	plans := make([]eboot.LearnedPlan, len(keys))
	for i, key := range keys {
		files := make([]eboot.PlanFile, len(t.byKey[key].files))
		for j, file := range t.byKey[key].files {
			files[j] = file.PlanFile
		}
		plans[i] = eboot.LearnedPlan{PlanKey: key, Files: files}
	}
	return plans, t.version
}

// keep drops the plans of known bundles for which wanted is false. Those for which it is
// true are known from now on.
func (t *planTable) keep(wanted func(eboot.Digest) bool) (dropped bool) {
	manifests := map[eboot.Digest]bool{}
	t.mu.Lock()
	for key := range t.byKey {
		manifests[key.Manifest] = true
	}
	t.mu.Unlock()
	for manifest := range manifests { // without the lock: what wanted asks may take long
		manifests[manifest] = wanted(manifest)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, p := range t.byKey {
		wanted, asked := manifests[key.Manifest]
		if asked && !wanted && p.known {
			delete(t.byKey, key)
			dropped = true
		}
		p.known = p.known || wanted
	}
	if dropped {
		t.version++
	}
	return dropped
}

func (t *planTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byKey)
}

func (t *planTable) changedSince(version uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version != version
}

// Learn notes that a boot of key needed the file at path, of size bytes, and reports
// whether that was new. What is no path of a bundle, and a file that alone is more than a
// plan may hold, is left out.
func (f *Fleet) Learn(key eboot.PlanKey, path string, size int64) (entered bool) {
	if entered = f.plans.learn(key, path, size); entered {
		f.wakeRun()
	}
	return entered
}

// Plan returns the files that boots of key needed, in the order first learned; nil when
// nothing was learned.
func (f *Fleet) Plan(key eboot.PlanKey) []string { return f.plans.paths(key) }

// Plans returns all plans, the longest unused first.
func (f *Fleet) Plans() []eboot.LearnedPlan {
	plans, _ := f.plans.all()
	return plans
}

// MergePlan takes in what another server learned, behind what this one knows and as far
// as there is room, and returns how many files were new.
func (f *Fleet) MergePlan(key eboot.PlanKey, files []eboot.PlanFile) (entered int) {
	if entered = f.plans.merge(key, files); entered > 0 {
		f.wakeRun()
	}
	return entered
}

// KeepPlans drops the plans of all bundles but those that keep is true for. What only
// another server learned stays until keep has been true for it: the bundle may be one that
// this server does not know yet.
func (f *Fleet) KeepPlans(keep func(manifest eboot.Digest) bool) {
	if f.plans.keep(keep) {
		f.wakeRun()
	}
}
