package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
	"eboot/ingest"
	"eboot/signature"
)

func (c *command) bundleCommand() *cobra.Command {
	return group("bundle", "What was published", c.bundlePublish(), c.bundleList(), c.bundleShow(), c.bundleDiff(), c.bundleVerify(), c.bundleSign(), c.bundleProtect(), c.bundleRemove())
}

// publishFlags are the flags of `bundle publish`.
type publishFlags struct {
	erts        []string
	boot        string
	channel     string
	dereference bool
	minCopies   int

	signKeys       []string
	passphraseFile string
	signatures     []string
	statements     string // a directory; not empty: nothing is published
}

func (c *command) bundlePublish() *cobra.Command {
	var flags publishFlags
	cmd := &cobra.Command{
		Use:   "publish NAME VERSION PATH",
		Short: "Publish a release or an Erlang installation: a directory, .tar, .tar.gz or .tar.zst",
		Args:  arguments(3, 3),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ref := eboot.Ref{Name: args[0], Version: args[1]}
			if err := ref.Check(); err != nil {
				return err
			}
			if flags.statements != "" {
				return c.publishStatements(ctx, ref, args[2], flags)
			}
			if flags.channel != "" {
				if err := eboot.CheckName("channel", flags.channel); err != nil {
					return err
				}
			}
			if flags.minCopies < 0 {
				return fmt.Errorf("--min-copies %d: want a positive number: %w", flags.minCopies, eboot.ErrInvalid)
			}
			outcome, _, err := c.publish(ctx, client, ref, args[2], flags)
			if err != nil {
				return err
			}
			return c.print(outcome, func(w io.Writer) error {
				for _, l := range outcome.Laggards {
					c.warn(fmt.Sprintf("server %s (%s) does not have %s yet, and boots no slave of it until then: %s", l.Server, l.Address, ref, l.Reason))
				}
				return publishText(w, ref, flags.channel, outcome)
			})
		}),
	}
	cmd.Flags().StringArrayVar(&flags.erts, "erts", nil, "ERTS version it is for; may be repeated (default: found in PATH)")
	cmd.Flags().StringVar(&flags.boot, "boot", "", "boot script in PATH that <root>/bin/start.boot answers (default: found)")
	cmd.Flags().StringVar(&flags.channel, "channel", "", "also point this channel to it")
	cmd.Flags().BoolVar(&flags.dereference, "dereference", false, "follow symlinks that point outside PATH")
	cmd.Flags().IntVar(&flags.minCopies, "min-copies", 0, "how many servers must hold it before it becomes visible (default: a majority, and those that are ready in time)")
	cmd.Flags().StringArrayVar(&flags.signKeys, "sign-key", nil, "sign it with this secret key before it becomes visible; may be repeated")
	cmd.Flags().StringVar(&flags.passphraseFile, "passphrase-file", "", "file whose first line opens the keys (default: asked for)")
	cmd.Flags().StringArrayVar(&flags.signatures, "signature", nil, "add this signature, made elsewhere, of the file of that name without .minisig; may be repeated")
	cmd.Flags().StringVar(&flags.statements, "statements", "", "write what signers sign to this directory and publish nothing")
	return c.write(cmd)
}

// publishStatements reads what stands at from and writes what is to be signed of it; no
// server is asked.
func (c *command) publishStatements(ctx context.Context, ref eboot.Ref, from string, flags publishFlags) error {
	source, err := ingest.Open(ctx, from, ingest.Options{Dereference: flags.dereference, ERTS: flags.erts, Boot: flags.boot})
	if err != nil {
		return err
	}
	defer source.Close()
	return c.writeStatements(flags.statements, bundlesOf(ref, source))
}

// publish reads what stands at from and sends what the server lacks meanwhile, says what it
// found, and sends the rest.
func (c *command) publish(ctx context.Context, client *api.Client, ref eboot.Ref, from string, flags publishFlags) (api.PublishOutcome, ingest.Found, error) {
	made, err := readSignatures(flags.signatures)
	if err != nil {
		return api.PublishOutcome{}, ingest.Found{}, err
	}
	var keys []signature.SecretKey
	for _, path := range flags.signKeys { // a person who is asked should not have to wait first
		key, err := c.secretKey(ctx, path, flags.passphraseFile)
		if err != nil {
			return api.PublishOutcome{}, ingest.Found{}, err
		}
		keys = append(keys, key)
	}
	open, err := client.OpenPublish(ctx)
	if err != nil {
		return api.PublishOutcome{}, ingest.Found{}, err
	}
	defer open.Close()
	reading := c.progress("reading")
	source, err := ingest.Open(ctx, from, ingest.Options{
		Dereference: flags.dereference, ERTS: flags.erts, Boot: flags.boot,
		Warn:     func(text string) { fmt.Fprintln(c.err, "warning:", text) },
		Progress: reading.set, Want: open.Want, Put: open.Put,
	})
	reading.done()
	if err != nil {
		return api.PublishOutcome{}, ingest.Found{}, err
	}
	defer source.Close()
	found := source.Found()
	if !c.json() {
		fmt.Fprintf(c.out, "%s: %s for ERTS %s, boot script %s, %s, %d files, %s\n", ref, found.Layout, strings.Join(found.ERTS, " "),
			found.BootScript, configText(found.SysConfig), found.Files, bytesText(found.Bytes))
		for _, note := range found.Notes {
			fmt.Fprintln(c.out, "note:", note)
		}
	}
	own := bundlesOf(ref, source)
	signatures, err := signPublish(own, keys, made)
	if err != nil {
		return api.PublishOutcome{}, found, err
	}
	sending := c.progress("sending")
	defer sending.done()
	outcome, err := open.Publish(ctx, api.Publish{
		Ref: ref, ERTS: found.ERTS, BootScript: found.BootScript, SysConfig: found.SysConfig,
		Channel: flags.channel, MinCopies: flags.minCopies, Signatures: signatures, Source: source, Progress: sending.set,
	})
	for _, b := range outcome.Bundles { // the digest that is shown is what a signer compares with
		if err == nil && b.Manifest != own[0].Manifest {
			err = fmt.Errorf("publish %s: the server answers with manifest %s, and %s was sent: %w", ref, b.Manifest, own[0].Manifest, eboot.ErrUnavailable)
		}
	}
	return outcome, found, err
}

func configText(file string) string {
	if file == "" {
		return "no sys.config"
	}
	return "configuration " + file
}

func publishText(w io.Writer, ref eboot.Ref, channel string, o api.PublishOutcome) error {
	var versions []string
	for _, b := range o.Bundles {
		versions = append(versions, b.ERTS)
	}
	verb := "published"
	if !o.Changed {
		verb = "unchanged:"
	}
	sent := "every blob was there already"
	if o.SentBlobs > 0 {
		sent = fmt.Sprintf("sent %d blobs, %s", o.SentBlobs, bytesText(o.SentBytes))
		if !o.Changed {
			sent += ", which the server had lost"
		}
	}
	if _, err := fmt.Fprintf(w, "%s %s for ERTS %s (%s); %s\n", verb, ref, strings.Join(versions, " "), o.Bundles[0].Manifest, sent); err != nil {
		return err
	}
	if channel != "" {
		_, err := fmt.Fprintf(w, "channel %s points to %s; generation %d\n", channel, ref, o.Generation)
		return err
	}
	if len(o.Bundles) > 0 && o.Changed {
		_, err := fmt.Fprintf(w, "no channel was moved; `eboot channel set %s %s` lets slaves boot it\n", eboot.DefaultChannel, ref)
		return err
	}
	return nil
}

// progressBar shows how far long work is, to a person only.
type progressBar struct{ bar *progressbar.ProgressBar }

func (c *command) progress(what string) *progressBar {
	if !c.interactive() {
		return &progressBar{}
	}
	return &progressBar{bar: progressbar.NewOptions64(-1, progressbar.OptionSetWriter(c.err), progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100e6), progressbar.OptionSetRenderBlankState(false))}
}

func (p *progressBar) set(done, total int64) {
	if p.bar == nil {
		return
	}
	if p.bar.GetMax64() != total {
		p.bar.ChangeMax64(total)
	}
	_ = p.bar.Set64(done) // a terminal that went away
}

func (p *progressBar) done() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

func (c *command) bundleList() *cobra.Command {
	return c.read(&cobra.Command{
		Use: "list", Short: "Show every bundle", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			bundles, err := client.Bundles(ctx)
			if err != nil {
				return err
			}
			return c.print(bundles, func(w io.Writer) error {
				rows := make([][]string, len(bundles))
				for i, b := range bundles {
					rows[i] = []string{b.Ref().String(), b.ERTS, b.Manifest.Short(), fmt.Sprint(b.Files), bytesText(b.Bytes),
						timeText(b.PublishedAt), dash(strings.Join(b.Channels, ",")), yesNo(b.Protected)}
				}
				return table(w, "BUNDLE ERTS MANIFEST FILES SIZE PUBLISHED CHANNELS PROTECTED", rows)
			})
		}),
	})
}

func (c *command) bundleShow() *cobra.Command {
	var boot bool
	var erts string
	cmd := &cobra.Command{
		Use: "show NAME@VERSION", Short: "Show a bundle, once for each ERTS version it was published for, or its boot script", Args: arguments(1, 1),
		ValidArgsFunction: c.complete(bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ref, err := eboot.ParseRef(args[0])
			if err != nil {
				return err
			}
			if boot {
				return c.showBootScript(ctx, client, ref, erts)
			}
			if erts != "" {
				return fmt.Errorf("--erts %s: goes with --boot: %w", erts, eboot.ErrInvalid)
			}
			details, err := client.Bundle(ctx, ref)
			if err != nil {
				return err
			}
			return c.print(details, func(w io.Writer) error {
				for i, d := range details {
					if i > 0 {
						fmt.Fprintln(w)
					}
					if err := bundleText(w, d); err != nil {
						return err
					}
				}
				return nil
			})
		}),
	}
	cmd.Flags().BoolVar(&boot, "boot", false, "the boot script as Erlang terms: as it was published, and as slaves get it")
	cmd.Flags().StringVar(&erts, "erts", "", "with --boot: for this ERTS version, when the bundle was published for several")
	return c.read(cmd)
}

// showBootScript prints a boot script twice: before and after eboot rewrites it.
func (c *command) showBootScript(ctx context.Context, client *api.Client, ref eboot.Ref, erts string) error {
	script, err := client.BootScript(ctx, ref, erts)
	if err != nil {
		return err
	}
	return c.print(script, func(w io.Writer) error {
		if script.Warning != "" {
			c.warn(script.Warning)
		}
		if script.Before == "" {
			return nil
		}
		if _, err := fmt.Fprintf(w, "%%%% %s as it was published\n%s\n", script.Path, strings.TrimRight(script.Before, "\n")); err != nil || script.Warning != "" {
			return err
		}
		_, err := fmt.Fprintf(w, "\n%%%% %s as slaves get it, unless their channel has the stock loader\n%s\n", script.Path, strings.TrimRight(script.After, "\n"))
		return err
	})
}

func bundleText(w io.Writer, d api.BundleDetail) error {
	held := "not loaded (no channel points to it)"
	if d.Disk != nil {
		held = fmt.Sprintf("%d of %d blobs on this server", d.Disk.Blobs-d.Disk.Missing, d.Disk.Blobs)
	}
	if err := fields(w, [][2]string{
		{"bundle", d.Ref().String()},
		{"erts", d.ERTS},
		{"manifest", d.Manifest.String()},
		{"boot script", d.BootScript},
		{"sys.config", dash(d.SysConfig)},
		{"files", fmt.Sprintf("%d, %s", d.Files, bytesText(d.Bytes))},
		{"published", timeText(d.PublishedAt)},
		{"channels", dash(strings.Join(d.Channels, ","))},
		{"pinned by", fmt.Sprintf("%d slaves", d.Pins)},
		{"protected", yesNo(d.Protected)},
		{"held", held},
		{"holders", strings.Join(d.Holders, " ")},
	}...); err != nil {
		return err
	}
	if err := signaturesText(w, d.Bundle); err != nil {
		return err
	}
	if err := pinsText(w, d); err != nil || len(d.Copies) == 0 {
		return err
	}
	rows := make([][]string, len(d.Copies))
	for i, k := range d.Copies {
		copied := "-"
		if k.Blobs > 0 {
			copied = fmt.Sprintf("%d/%d", k.Blobs-k.Missing, k.Blobs)
		}
		rows[i] = []string{k.Server, k.Address, copied, dash(k.Problem)}
	}
	fmt.Fprintln(w)
	return table(w, "SERVER ADDRESS BLOBS PROBLEM", rows)
}

// pinsText lists the slaves that a bundle is kept for.
func pinsText(w io.Writer, d api.BundleDetail) error {
	if len(d.PinnedBy) == 0 {
		return nil
	}
	rows := make([][]string, len(d.PinnedBy))
	for i, p := range d.PinnedBy {
		rows[i] = []string{p.Slave.String(), timeText(p.At)}
	}
	fmt.Fprintln(w)
	if err := table(w, "PINNED-BY BOOTED", rows); err != nil || d.Pins <= len(rows) {
		return err
	}
	_, err := fmt.Fprintf(w, "and %d more\n", d.Pins-len(rows))
	return err
}

func (c *command) bundleProtect() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "protect NAME@VERSION", Short: "Have a bundle neither removed nor collected", Args: arguments(1, 1),
		ValidArgsFunction: c.complete(bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ref, err := eboot.ParseRef(args[0])
			if err != nil {
				return err
			}
			result, err := client.ProtectBundle(ctx, ref, !off)
			if err != nil {
				return err
			}
			done := "protected "
			if off {
				done = "no longer protected: "
			}
			return c.print(result, func(w io.Writer) error { return written(w, done+ref.String(), result) })
		}),
	}
	cmd.Flags().BoolVar(&off, "off", false, "allow both again")
	return c.write(cmd)
}

func (c *command) bundleRemove() *cobra.Command {
	var erts string
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME@VERSION", Short: "Remove a bundle that no channel points to, and the blobs that only it names", Args: arguments(1, 1),
		ValidArgsFunction: c.complete(bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ref, err := eboot.ParseRef(args[0])
			if err != nil {
				return err
			}
			result, err := client.RemoveBundle(ctx, ref, erts, force)
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				return written(w, "removed "+ref.String(), result)
			})
		}),
	}
	cmd.Flags().StringVar(&erts, "erts", "", "only for this ERTS version (default: all)")
	cmd.Flags().BoolVar(&force, "force", false, "although slaves run it: they get no more code from it until they boot again")
	return c.write(cmd)
}
