package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"eboot"
	"eboot/api"
)

// VerifyBundle hashes every blob of ref, the manifest included.
func (a *Agent) VerifyBundle(ctx context.Context, ref eboot.Ref, report func(api.VerifyProgress) error) error {
	progress := api.VerifyProgress{}
	sizes := map[eboot.Digest]int64{}
	for _, b := range a.view.State().BundlesOf(ref) {
		manifest, err := a.trees.readManifest(b)
		if note(b.Manifest, err, a.now(), &progress) != nil {
			return err
		}
		if err != nil {
			continue // what it names cannot be known
		}
		for _, e := range manifest.Entries {
			if e.Kind == eboot.KindFile {
				sizes[e.Digest] = e.Size
			}
		}
	}
	digests := make([]eboot.Digest, 0, len(sizes))
	for d := range sizes {
		digests = append(digests, d)
	}
	slices.SortFunc(digests, func(x, y eboot.Digest) int { return slices.Compare(x[:], y[:]) })
	progress.Total = len(digests)

	latest := a.now()
	for _, d := range digests {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := note(d, a.store.Verify(ctx, d, sizes[d]), a.now(), &progress); err != nil {
			return err
		}
		progress.Checked++
		if now := a.now(); now.Sub(latest) > 200*time.Millisecond {
			latest = now
			if err := report(api.VerifyProgress{Checked: progress.Checked, Total: progress.Total}); err != nil {
				return err
			}
		}
	}
	progress.Done = true
	return report(progress)
}

// note enters what was found of one blob. It returns errors that say nothing
// about the blob.
func note(d eboot.Digest, err error, found time.Time, into *api.VerifyProgress) error {
	switch {
	case err == nil:
	case errors.Is(err, eboot.ErrNotFound):
		into.Missing = append(into.Missing, d)
	case errors.Is(err, eboot.ErrDamaged):
		into.Damaged = append(into.Damaged, eboot.DamagedBlob{Digest: d, Found: found, Reason: err.Error()})
	default:
		return err
	}
	return nil
}
