package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"eboot"
	"eboot/api"
)

// scriptSource gives the boot script of a bundle.
type scriptSource interface {
	// rewritten returns where the script stands in the bundle, the script as it was
	// published, and as slaves get it. eboot.ErrInvalid: slaves get it as it was published,
	// for that reason; path and before are there. Any other error: it cannot be read now.
	rewritten(b eboot.Bundle) (path string, before, after []byte, err error)
	// text returns a script as Erlang terms; an error when it cannot be read as one.
	text(script []byte) (string, error)
}

// BootScript shows the boot script of ref before and after it is rewritten.
func (a *Agent) BootScript(_ context.Context, ref eboot.Ref, erts string) (api.BootScript, error) {
	b, err := oneBundle(a.view.State().BundlesOf(ref), ref, erts)
	if err != nil {
		return api.BootScript{}, err
	}
	return showScript(shownScripts{a.trees}, b)
}

// oneBundle picks the bundle for one ERTS version; empty: there must be only one.
func oneBundle(bundles []eboot.Bundle, ref eboot.Ref, erts string) (eboot.Bundle, error) {
	var versions []string
	for _, b := range bundles {
		if b.ERTS == erts {
			return b, nil
		}
		versions = append(versions, b.ERTS)
	}
	switch {
	case len(bundles) == 0:
		return eboot.Bundle{}, fmt.Errorf("bundle %s: does not exist; `eboot bundle list` shows what does: %w", ref, eboot.ErrNotFound)
	case erts != "":
		return eboot.Bundle{}, fmt.Errorf("bundle %s for ERTS %s: does not exist; it was published for %s: %w", ref, erts, strings.Join(versions, ", "), eboot.ErrNotFound)
	case len(bundles) > 1:
		return eboot.Bundle{}, fmt.Errorf("bundle %s: was published for ERTS %s; say for which (--erts): %w", ref, strings.Join(versions, ", "), eboot.ErrInvalid)
	}
	return bundles[0], nil
}

func showScript(source scriptSource, b eboot.Bundle) (api.BootScript, error) {
	path, before, after, err := source.rewritten(b)
	shown := api.BootScript{Path: path}
	switch {
	case errors.Is(err, eboot.ErrInvalid):
		shown.Warning, after = err.Error(), before
	case err != nil:
		return shown, fmt.Errorf("boot script of %s for ERTS %s: %w", b.Ref(), b.ERTS, err)
	}
	for _, part := range []struct {
		script []byte
		text   *string
	}{{before, &shown.Before}, {after, &shown.After}} {
		text, err := source.text(part.script)
		if err != nil && shown.Warning == "" {
			return shown, fmt.Errorf("boot script %s of %s for ERTS %s: %w", path, b.Ref(), b.ERTS, err)
		}
		*part.text = text
	}
	return shown, nil
}
