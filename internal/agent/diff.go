package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"eboot"
	"eboot/api"
	"eboot/filestore/bundlefs"
	"eboot/internal/beamfile"
)

// DiffBundles says what changed from one bundle to another. Only what differs is read, one file
// at a time.
func (a *Agent) DiffBundles(ctx context.Context, from, to eboot.Ref, erts string) (api.BundleDiff, error) {
	state := a.view.State()
	before, after, err := sameERTS(state.BundlesOf(from), from, state.BundlesOf(to), to, erts)
	if err != nil {
		return api.BundleDiff{}, err
	}
	d := &differ{trees: a.trees, diff: api.BundleDiff{From: from, To: to, ERTS: before.ERTS, Applications: []api.ApplicationDiff{}, Files: []api.FileDiff{}}}
	if err := d.compare(ctx, before, after); err != nil {
		return api.BundleDiff{}, fmt.Errorf("compare %s with %s for ERTS %s: %w", from, to, before.ERTS, unreadable(ctx, err))
	}
	return d.diff, nil
}

// sameERTS picks the bundles of both for one ERTS version; empty: for the only one that both have.
func sameERTS(from []eboot.Bundle, fromRef eboot.Ref, to []eboot.Bundle, toRef eboot.Ref, erts string) (before, after eboot.Bundle, err error) {
	if len(from) > 0 && len(to) == 0 {
		_, err = oneBundle(to, toRef, erts)
		return before, after, err
	}
	if erts == "" && len(from) > 0 {
		var common, only []string
		for _, b := range from {
			only = append(only, b.ERTS)
			if slices.ContainsFunc(to, func(other eboot.Bundle) bool { return other.ERTS == b.ERTS }) {
				common = append(common, b.ERTS)
			}
		}
		switch len(common) {
		case 0:
			return before, after, fmt.Errorf("%s was published for ERTS %s, and %s for none of these; only bundles for one version can be compared: %w",
				fromRef, strings.Join(only, ", "), toRef, eboot.ErrInvalid)
		case 1:
			erts = common[0]
		default:
			return before, after, fmt.Errorf("%s and %s were both published for ERTS %s; say for which (--erts): %w", fromRef, toRef, strings.Join(common, ", "), eboot.ErrInvalid)
		}
	}
	if before, err = oneBundle(from, fromRef, erts); err != nil {
		return before, after, err
	}
	after, err = oneBundle(to, toRef, erts)
	return before, after, err
}

// unreadable keeps a content that is not on this disk from being taken for a bundle that
// does not exist.
func unreadable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), eboot.ErrTimeout)
	case errors.Is(err, eboot.ErrDamaged):
		return err
	}
	return fmt.Errorf("%v; `eboot bundle show` says which servers hold it whole: %w", err, eboot.ErrUnavailable)
}

// differ compares two bundles.
type differ struct {
	trees    *treeSet
	from, to *eboot.Manifest
	diff     api.BundleDiff
	listed   int // of diff
}

func (d *differ) compare(ctx context.Context, before, after eboot.Bundle) (err error) {
	if d.from, err = d.trees.readManifest(before); err != nil {
		return err
	}
	if d.to, err = d.trees.readManifest(after); err != nil {
		return err
	}
	// What is compared below names that differ is not looked at under its own name.
	apart := [2]map[string]bool{{}, {}}
	for _, p := range pairApplications(applications(d.from), applications(d.to)) {
		apart[0][p[0].dir], apart[1][p[1].dir] = true, true
		if err := d.application(ctx, p); err != nil {
			return err
		}
	}
	if from, to, ok := releaseDirectories(d.from, before, d.to, after); ok {
		apart[0][from], apart[1][to] = true, true
		if err := d.files(ctx, from, to, nil); err != nil {
			return err
		}
	}
	if err := d.files(ctx, "", "", &apart); err != nil {
		return err
	}
	slices.SortFunc(d.diff.Files, func(a, b api.FileDiff) int { return cmp.Compare(a.Path, b.Path) })
	return d.configuration(before, after)
}

// room reports whether one more may be listed.
func (d *differ) room() bool {
	if d.listed == api.MaxDifferences {
		d.diff.Truncated = true
		return false
	}
	d.listed++
	return true
}

// application compares the directories of one application.
func (d *differ) application(ctx context.Context, p [2]application) error {
	app := api.ApplicationDiff{Name: p[0].name, Change: api.Changed, From: p[0].version, To: p[1].version, Modules: []api.ModuleDiff{}}
	switch {
	case p[0].absent:
		app.Change, app.From = api.Added, ""
	case p[1].absent:
		app.Change, app.To = api.Removed, ""
	}
	differs := p[0] != p[1]
	for relative, pair := range bundlefs.Compare(d.from, p[0].dir, d.to, p[1].dir) {
		name, isModule := strings.CutSuffix(path.Base(relative), ".beam")
		isModule = isModule && path.Dir(relative) == "ebin"
		change, recompiled, err := d.difference(ctx, pair)
		switch {
		case err != nil:
			return err
		case recompiled:
			app.Recompiled++
			continue
		case change == "":
			continue
		}
		differs = true
		switch {
		case isModule && d.room():
			app.Modules = append(app.Modules, api.ModuleDiff{Module: name, Change: change})
		case !isModule && app.Change == api.Changed && d.room():
			d.diff.Files = append(d.diff.Files, api.FileDiff{Path: pathOf(pair), Change: change})
		}
	}
	d.diff.Recompiled += app.Recompiled
	if differs && d.room() {
		d.diff.Applications = append(d.diff.Applications, app)
	}
	return nil
}

// files compares two directories file by file, without what stands apart: directories of two
// names in either tree; nil: nothing does.
func (d *differ) files(ctx context.Context, from, to string, apart *[2]map[string]bool) error {
	for _, pair := range bundlefs.Compare(d.from, from, d.to, to) {
		if apart != nil {
			if pair.From != nil && apart[0][topTwo(pair.From.Path)] {
				pair.From = nil
			}
			if pair.To != nil && apart[1][topTwo(pair.To.Path)] {
				pair.To = nil
			}
		}
		change, recompiled, err := d.difference(ctx, pair)
		switch {
		case err != nil:
			return err
		case recompiled:
			d.diff.Recompiled++
		case change != "" && d.room():
			d.diff.Files = append(d.diff.Files, api.FileDiff{Path: pathOf(pair), Change: change})
		}
	}
	return nil
}

// difference says what became of a file or symlink; "" for directories, and with recompiled set
// for a BEAM file that differs and has the same code.
func (d *differ) difference(ctx context.Context, p bundlefs.Pair) (change api.Difference, recompiled bool, err error) {
	from := p.From != nil && p.From.Kind != eboot.KindDirectory
	to := p.To != nil && p.To.Kind != eboot.KindDirectory
	switch {
	case !from && !to:
		return "", false, nil
	case p.From == nil:
		return api.Added, false, nil
	case p.To == nil:
		return api.Removed, false, nil
	case p.From.Kind != eboot.KindFile || p.To.Kind != eboot.KindFile || !strings.HasSuffix(p.From.Path, ".beam"):
		return api.Changed, false, nil
	case p.From.Digest == p.To.Digest: // nobody executes a BEAM file
		return "", true, nil
	}
	if err := ctx.Err(); err != nil {
		return "", false, err
	}
	before, ok, err := d.code(p.From)
	if err != nil || !ok {
		return api.Changed, false, err
	}
	after, ok, err := d.code(p.To)
	if err != nil || !ok || before != after {
		return api.Changed, false, err
	}
	return "", true, nil
}

// code returns the sum of the code in a BEAM file; false: it is none.
func (d *differ) code(e *eboot.ManifestEntry) (sum [16]byte, ok bool, err error) {
	if e.Size > beamfile.MaxSize {
		return sum, false, nil
	}
	data, err := d.trees.store.Read(e.Digest)
	if err != nil {
		return sum, false, fmt.Errorf("%s: %w", e.Path, err)
	}
	_, sum, err = beamfile.CodeMD5(data)
	return sum, err == nil, nil
}

// configuration compares what the slaves are started with.
func (d *differ) configuration(before, after eboot.Bundle) error {
	from, err := d.trees.tree(before)
	if err != nil {
		return err
	}
	to, err := d.trees.tree(after)
	if err != nil {
		return err
	}
	d.diff.SysConfigChanged = contentOf(d.from, from, before.SysConfig) != contentOf(d.to, to, after.SysConfig)
	d.diff.BootScript = api.BootScriptDiff{From: before.BootScript, To: after.BootScript}
	if contentOf(d.from, from, before.BootScript) == contentOf(d.to, to, after.BootScript) {
		return nil
	}
	d.diff.BootScript.Changed = true
	d.diff.BootScript.Lines, d.diff.BootScript.Warning, err = diffScripts(from, before.BootScript, to, after.BootScript)
	return err
}

// contentOf returns the digest of the file that a path leads to; zero: it leads to none.
func contentOf(m *eboot.Manifest, tree *servedTree, name string) eboot.Digest {
	if resolved, _, ok := tree.Resolve([]byte(name)); ok {
		if e := m.Find(resolved); e != nil {
			return e.Digest
		}
	}
	return eboot.Digest{}
}

func pathOf(p bundlefs.Pair) string {
	if p.To != nil {
		return p.To.Path
	}
	return p.From.Path
}

// topTwo cuts a path after its second name.
func topTwo(p string) string {
	if first := strings.IndexByte(p, '/'); first >= 0 {
		if second := strings.IndexByte(p[first+1:], '/'); second >= 0 {
			return p[:first+1+second]
		}
	}
	return p
}
