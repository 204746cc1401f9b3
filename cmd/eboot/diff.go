package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) bundleDiff() *cobra.Command {
	var erts string
	cmd := &cobra.Command{
		Use: "diff NAME@VERSION NAME@VERSION", Short: "Show which applications, modules, files and boot instructions changed from one bundle to another", Args: arguments(2, 2),
		ValidArgsFunction: c.complete(bundleNames, bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			from, err := eboot.ParseRef(args[0])
			if err != nil {
				return err
			}
			to, err := eboot.ParseRef(args[1])
			if err != nil {
				return err
			}
			diff, err := client.DiffBundles(ctx, from, to, erts)
			if err != nil {
				return err
			}
			return c.print(diff, func(w io.Writer) error {
				if diff.Truncated {
					c.warn(fmt.Sprintf("more than %d applications, modules and files differ; the rest is left out", api.MaxDifferences))
				}
				_, err := io.WriteString(w, diffText(diff))
				return err
			})
		}),
	}
	cmd.Flags().StringVar(&erts, "erts", "", "for this ERTS version, when both bundles were published for several")
	return c.read(cmd)
}

// diffText tells of each difference in a line.
func diffText(d api.BundleDiff) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s for ERTS %s\n", d.From, d.To, d.ERTS)
	for _, app := range d.Applications {
		applicationText(&b, app)
	}
	for _, f := range d.Files {
		fmt.Fprintf(&b, "file %s\n", mark(f.Change)+f.Path)
	}
	script := d.BootScript
	switch {
	case script.Warning != "" && len(script.Lines) == 0:
		fmt.Fprintf(&b, "boot script %s: %s; %s\n", moved(script.From, script.To), api.Changed, script.Warning)
	case script.Changed && len(script.Lines) == 0:
		fmt.Fprintf(&b, "boot script %s: other bytes, the same instructions\n", moved(script.From, script.To))
	case script.Changed:
		fmt.Fprintf(&b, "boot script %s:\n", moved(script.From, script.To))
		for _, line := range script.Lines {
			fmt.Fprintf(&b, "  %s\n", line)
		}
		if script.Warning != "" {
			fmt.Fprintf(&b, "  %s\n", script.Warning)
		}
	}
	if d.SysConfigChanged {
		b.WriteString("sys.config: changed\n")
	}
	if d.Same() {
		b.WriteString("nothing that a slave would notice\n")
	}
	if d.Recompiled > 0 {
		fmt.Fprintf(&b, "modules compiled anew with the same code: %d\n", d.Recompiled)
	}
	return b.String()
}

// applicationText names the modules, unless the whole application came or went.
func applicationText(b *strings.Builder, app api.ApplicationDiff) {
	if app.Change != api.Changed {
		name := strings.TrimSpace(app.Name + " " + app.From + app.To)
		fmt.Fprintf(b, "application %s%s, modules: %d\n", mark(app.Change), name, len(app.Modules))
		return
	}
	fmt.Fprintf(b, "application ~ %s %s\n", app.Name, moved(dash(app.From), dash(app.To)))
	for _, m := range app.Modules {
		fmt.Fprintf(b, "  module %s\n", mark(m.Change)+m.Module)
	}
}

func mark(change api.Difference) string {
	switch change {
	case api.Added:
		return "+ "
	case api.Removed:
		return "- "
	}
	return "~ "
}

func moved(from, to string) string {
	if from == to {
		return to
	}
	return from + " -> " + to
}
