package vps

import (
	"fmt"
	"time"
)

// Words are a text with what varies in it, as it was written: in English, for an
// operator of the host. Customers are told them only where they are among the
// sentences below, so that what nobody wrote for them never reaches them.
type Words struct {
	format string
	args   []any
	text   string
}

// Say makes Words; an argument may be Words, too.
func Say(format string, args ...any) Words { return Words{format, args, fmt.Sprintf(format, args...)} }

// String is what an operator reads.
func (w Words) String() string { return w.text }

// In returns the words for a customer; ok is false when they, or a part of them, are
// for operators only.
func (w Words) In(l Language) (text string, ok bool) {
	said, ok := sentences[w.format]
	if !ok {
		return "", false
	}
	args := make([]any, len(w.args))
	for i, arg := range w.args {
		if args[i] = arg; l == French {
			args[i] = frenchTime(arg)
		}
		if part, is := arg.(Words); is {
			if args[i], ok = part.In(l); !ok {
				return "", false
			}
		}
	}
	format, ok := said[l]
	if !ok {
		format = w.format
	}
	return fmt.Sprintf(format, args...), true
}

// frenchTime writes an argument that is a time, in UTC, for a human.
func frenchTime(arg any) any {
	text, is := arg.(string)
	if !is {
		return arg
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return arg
	}
	return French.Time(at)
}

// InOr returns the words for a customer, or else what the code says to one.
func (w Words) InOr(l Language, c Code) string {
	if text, ok := w.In(l); ok {
		return text
	}
	return c.In(l)
}

// sentences are the Words that customers are told, by their English format. Where
// that names something of the host, the English for customers stands beside it.
var sentences = map[string]map[Language]string{
	// Who may call what.
	"the call needs exactly one token": {
		French: "l'appel demande exactement un jeton",
	},
	"send it as: Authorization: Bearer TOKEN": {
		French: "envoyez-le ainsi : Authorization: Bearer JETON",
	},
	"a token in the URL is not accepted": {
		French: "un jeton dans l'URL n'est pas accepté",
	},
	"send it in the Authorization header, and replace it: it may be in a log by now": {
		French: "envoyez-le dans l'en-tête Authorization, et remplacez-le : il figure peut-être déjà dans un journal",
	},
	"the token is not valid": {French: "le jeton n'est pas valable"},
	"the token has expired":  {French: "le jeton a expiré"},
	"the token %q lacks the scope %q": {
		French: "le jeton %q n'a pas la portée %q",
	},
	"cannot tell who calls": {
		French: "l'auteur de l'appel est inconnu",
	},
	"user %s is not an operator of this host": {
		French: "l'utilisateur %s n'est pas un opérateur de cet hôte",
	},
	"use root or a member of the group %s": {
		French: "utilisez root ou un membre du groupe %s",
	},
	"too many wrong tokens came from this address": {
		French: "trop de jetons faux sont venus de cette adresse",
	},
	"too many calls come from this address": {
		French: "trop d'appels viennent de cette adresse",
	},
	"this user makes too many calls": {
		French: "cet utilisateur fait trop d'appels",
	},
	"the token makes too many calls": {French: "le jeton fait trop d'appels"},
	"the VPS was changed too often":  {French: "le VPS a été modifié trop souvent"},
	"%d streams and waits of %s are open already": {
		French: "%d flux et attentes de %s sont déjà ouverts"},
	"end some of them: one stream of events tells of all VPS that a token sees": {
		French: "terminez-en : un seul flux d'événements suffit pour tous les VPS d'un jeton"},
	"contact_email has characters beyond ASCII, which need SMTPUTF8": {
		French: "contact_email contient des caractères hors ASCII, qui exigent SMTPUTF8"},
	"write the domain as xn--..., and take an address whose name is in ASCII": {
		French: "écrivez le domaine sous la forme xn--..., et prenez une adresse dont le nom est en ASCII"},
	"the token was revoked meanwhile": {French: "le jeton a été révoqué entre-temps"},
	"wait %d s":                       {French: "attendez %d s"},

	// The form of a call.
	"no such path":                       {French: "ce chemin n'existe pas"},
	"the path does not know this method": {French: "le chemin ne connaît pas cette méthode"},
	"the request is malformed":           {French: "la demande est mal formée"},
	"the body must be application/json": {
		French: "le corps doit être de type application/json",
	},
	"the body is larger than %d bytes":  {French: "le corps dépasse %d octets"},
	"the body did not arrive within %s": {French: "le corps n'est pas arrivé en %s"},
	"the body could not be read":        {French: "le corps n'a pas pu être lu"},
	"the body is not one JSON value in UTF-8": {
		French: "le corps n'est pas une valeur JSON en UTF-8",
	},
	"there is no such time: %s": {
		French: "cette date ou cette heure n'existe pas : %s",
	},
	"the body must not be compressed":           {French: "le corps ne doit pas être compressé"},
	"the body has the field %q twice":           {French: "le corps a deux fois le champ %q"},
	"this call takes no body":                   {French: "cet appel ne prend pas de corps"},
	"the query is malformed":                    {French: "les paramètres de l'URL sont mal formés"},
	"the path is malformed":                     {French: "le chemin est mal formé"},
	"the query parameter %q is not known here":  {French: "le paramètre %q n'est pas connu ici"},
	"the query parameter %q was given %d times": {French: "le paramètre %q a été donné %d fois"},
	"%s is not accepted: %s":                    {French: "%s n'est pas accepté : %s"},
	"the body":                                  {French: "le corps"},
	"the parameter %s":                          {French: "le paramètre %s"},
	"the field %s":                              {French: "le champ %s"},
	"the parameter wait is no duration":         {French: "le paramètre wait n'est pas une durée"},
	"the parameter cursor is not one that was given out": {
		French: "le paramètre cursor n'a pas été reçu d'une page précédente",
	},
	"the id of the last event is not one that was given out": {
		French: "l'identifiant du dernier événement n'a jamais été attribué",
	},
	"a call has one Idempotency-Key, of 1 to 255 characters, or none": {
		French: "un appel a une seule Idempotency-Key, de 1 à 255 caractères, ou aucune",
	},
	"the Idempotency-Key was used for another call": {
		French: "cette Idempotency-Key a servi à un autre appel",
	},
	"If-Match must hold an ETag in its quotes, or *": {
		French: "If-Match doit contenir un ETag entre guillemets, ou *",
	},
	"it was changed since you read it": {
		French: "l'objet a été modifié depuis que vous l'avez lu",
	},
	"read it again, and decide anew": {French: "relisez-le, puis décidez à nouveau"},

	// What a call asks for.
	"a description is one line of at most 500 characters": {
		French: "une description tient en une ligne de 500 caractères au plus",
	},
	"quiesce must be prefer, require or never, not %q": {
		French: "quiesce doit être prefer, require ou never, et non %q",
	},
	"power_after must be previous, running or off, not %q": {
		French: "power_after doit être previous, running ou off, et non %q",
	},
	"an option can be put to ordered or active, not to %q": {
		French: "une option peut passer à ordered ou active, pas à %q",
	},
	"cancel it with DELETE to end it": {
		French: "résiliez-la par DELETE pour y mettre fin",
	},
	"order_ref is one line of at most 128 characters": {
		French: "order_ref tient en une ligne de 128 caractères au plus",
	},
	"contact_email is no e-mail address": {
		French: "contact_email n'est pas une adresse e-mail",
	},
	"locale is no language tag, such as fr or de-CH": {
		French: "locale n'est pas une étiquette de langue, comme fr ou de-CH",
	},
	"a price needs an amount of 0 or more in minor units and an ISO 4217 currency": {
		French: "un prix demande un montant de 0 ou plus dans la plus petite unité et une devise ISO 4217",
	},
	"a price is per month, year or once, not per %q": {
		French: "un prix est par month, year ou once, pas par %q",
	},
	"ends_at lies in the past":         {French: "ends_at est dans le passé"},
	"ends_at lies after the year 9999": {French: "ends_at est après l'an 9999"},
	"leave it out for an option that goes on until it is cancelled": {
		French: "omettez-le pour une option qui dure jusqu'à sa résiliation",
	},
	"the name must consist of 1 to 64 letters, digits and . _ @ + -": {
		French: "le nom doit compter de 1 à 64 lettres, chiffres et . _ @ + -",
	},
	"the token has no scopes": {French: "le jeton n'a aucune portée"},
	"way %q is neither panel nor order": {
		French: "way %q n'est ni panel ni order",
	},
	"vps is empty": {French: "vps est vide"},
	"leave it out for all VPS, or name some": {
		French: "omettez-le pour tous les VPS, ou nommez-en",
	},
	"a token with scope admin cannot be bound to some VPS": {
		French: "un jeton de portée admin ne peut pas être lié à certains VPS",
	},
	"the token would have expired already": {French: "le jeton aurait déjà expiré"},
	"unknown scope %q":                     {French: "la portée %q est inconnue"},
	"there is a token called %s":           {French: "il y a déjà un jeton nommé %s"},
	"choose another name, or revoke that one first": {
		French: "choisissez un autre nom, ou révoquez d'abord ce jeton",
	},
	"the token has made %d tokens already": {
		French: "le jeton a déjà créé %d jetons",
	},
	"wait until some of them have expired": {
		French: "attendez que certains aient expiré",
	},
	"the token %q cannot give the scope %q, which it has not": {
		French: "le jeton %q ne peut pas donner la portée %q, qu'il n'a pas",
	},
	"a token that was made by a token cannot make others": {
		French: "un jeton créé par un jeton ne peut pas en créer d'autres",
	},
	"only an operator can make a token for all VPS": {
		French: "seul un opérateur peut créer un jeton pour tous les VPS",
	},
	"say for which it is":         {French: "indiquez pour lesquels il est"},
	"the token is for the way %s": {French: "le jeton est pour la voie %s"},
	"a token that a token makes lives %s at most": {
		French: "un jeton créé par un jeton vit %s au plus",
	},

	// What there is not, and what cannot be now.
	"no such VPS":             {French: "ce VPS n'existe pas"},
	"no such operation":       {French: "cette opération n'existe pas"},
	"the VPS has no snapshot": {French: "le VPS n'a pas de snapshot"},
	"%s has no snapshot":      {French: "%s n'a pas de snapshot"},
	"the record of %s is damaged, so nothing is done to it": {
		French: "l'enregistrement de %s est endommagé, rien n'y est donc fait",
	},
	"the record of the snapshot option of %s is damaged": {
		French: "l'enregistrement de l'option snapshot de %s est endommagé",
	},
	"the VPS has no snapshot option":     {French: "le VPS n'a pas d'option snapshot"},
	"%s has no active snapshot option":   {French: "%s n'a pas d'option snapshot active"},
	"the snapshot option ended just now": {French: "l'option snapshot vient de prendre fin"},
	"order and activate the snapshot option first (PUT /v1/vps/{vps}/option)": {
		French: "commandez et activez d'abord l'option snapshot (PUT /v1/vps/{vps}/option)",
	},
	"%s has a snapshot already, from %s": {French: "%s a déjà un snapshot, du %s"},
	"delete the snapshot first, or replace it (\"replace\": true)": {
		French: "supprimez d'abord le snapshot, ou remplacez-le (\"replace\": true)",
	},
	"the snapshot of %s is %s and cannot be replaced": {
		French: "le snapshot de %s est %s et ne peut pas être remplacé",
	},
	"the snapshot of %s cannot be replaced: the one before it could not be merged away yet": {
		English: "the snapshot of %s cannot be replaced: the one before it is not deleted yet", French: "le snapshot de %s ne peut pas être remplacé : le précédent n'est pas encore supprimé"},
	"delete the snapshot, which merges both, then take a new one": {
		English: "delete the snapshot, then take a new one", French: "supprimez le snapshot, puis créez-en un nouveau"},
	"the snapshot of %s is %s and cannot be restored":   {French: "le snapshot de %s est %s et ne peut pas être restauré"},
	"the snapshot of %s is %s and cannot be downloaded": {French: "le snapshot de %s est %s et ne peut pas être téléchargé"},
	"the snapshot of %s is %s":                          {French: "le snapshot de %s est %s"},
	"the snapshot of %s is %s: %s": {
		English: "the snapshot of %[1]s is %[2]s",
		French:  "le snapshot de %[1]s est %[2]s",
	},
	"the snapshot of %s is broken: %s": {
		French: "le snapshot de %[1]s est endommagé et ne peut pas être restauré pour le moment",
	},
	"the snapshot of %[1]s is broken: %[2]s; an operator of the host can do away with it once %[1]s has other disks": {
		English: "the snapshot of %[1]s is broken; only an operator of the host can do away with it", French: "le snapshot de %[1]s est endommagé ; seul un opérateur de l'hôte peut l'éliminer"},
	"%s has no restore that can be undone": {French: "%s n'a pas de restauration qui puisse être annulée"},
	"the time to undo the restore of %s ended at %s": {
		French: "le délai pour annuler la restauration de %s a pris fin le %s",
	},
	"everything that %s has written since %s (about %s) is taken back, and the VPS is stopped for a moment; the restore %s": {
		French: "tout ce que %s a écrit depuis le %s (environ %s) sera perdu, et le VPS sera arrêté un instant ; la restauration %s"},
	"the confirmation names another snapshot: %s": {French: "la confirmation désigne un autre snapshot : %s"},
	"cannot be undone":                            {French: "ne pourra pas être annulée"},
	"can be undone for %d %s":                     {French: "pourra être annulée pendant %d %s"},
	"second":                                      {French: "seconde"},
	"seconds":                                     {French: "secondes"},
	"minute":                                      {French: "minute"},
	"minutes":                                     {French: "minutes"},
	"hour":                                        {French: "heure"},
	"hours":                                       {French: "heures"},
	"send {\"confirm\": \"%s\"} to confirm":       {French: "envoyez {\"confirm\": \"%s\"} pour confirmer"},
	"everything written since %s is taken back": {French: "tout ce qui a été écrit depuis le %s sera perdu"},
	"possible until %s":                         {French: "possible jusqu'au %s"},
	"this ends the possibility to undo the last restore": {
		French: "cela met fin à la possibilité d'annuler la dernière restauration",
	},

	// What is under way.
	"another operation of %s is not finished": {
		French: "une autre opération de %s n'est pas terminée",
	},
	"%s has an operation in progress (%s, %s)": {
		French: "%s a une opération en cours (%s, %s)",
	},
	"operation %s of %s waits for an operator": {
		French: "l'opération %s de %s attend un opérateur",
	},
	"the snapshot of %s is about to change (%s, %s)": {
		French: "le snapshot de %s est sur le point de changer (%s, %s)",
	},
	"wait for it to end": {French: "attendez qu'elle se termine"},
	"wait for it to end (GET /v1/operations)": {
		French: "attendez qu'elle se termine (GET /v1/operations)",
	},
	"wait for it to end (GET /v1/operations), then ask again": {
		French: "attendez qu'elle se termine (GET /v1/operations), puis refaites la demande",
	},
	"wait for the operation to end (GET /v1/operations), then ask again": {
		French: "attendez la fin de l'opération (GET /v1/operations), puis refaites la demande",
	},
	"cannot cancel operation %s: it has ended (%s)": {
		French: "l'opération %s ne peut pas être annulée : elle est terminée (%s)",
	},
	"cannot cancel operation %s: it stopped at step %s and needs an operator": {
		French: "l'opération %s ne peut pas être annulée : elle s'est arrêtée à l'étape %s et demande un opérateur",
	},
	"cannot cancel operation %s: step %s cannot be taken back, only finished": {
		French: "l'opération %s ne peut pas être annulée : l'étape %s ne peut qu'être menée à son terme",
	},
	"cure the cause on the host, then resume the operation": parked,

	// The VPS.
	"%s does not answer its host":               {French: "%s ne répond pas à son hôte"},
	"another request for %s waits for its host": {French: "une autre demande pour %s attend son hôte"},
	"try again in a while":                      {French: "réessayez dans un moment"},
	"try again":                                 {French: "réessayez"},
	"it took too long":                          {French: "cela a pris trop de temps"},
	"vpssnapd is not ready":                     {French: "vpssnapd n'est pas prêt"},
	"%s was migrated to another host":           {French: "%s a été déplacé vers un autre hôte"},
	"%s was migrated to another host; only its definition is still here": {
		English: "%s was migrated to another host",
		French:  "%s a été déplacé vers un autre hôte",
	},
	"the name %s belonged to another VPS, %s, which is gone from the host and still has a snapshot or an option here": {
		English: "the name %[1]s belonged to another VPS; name the VPS by its id", French: "le nom %[1]s appartenait à un autre VPS ; désignez le VPS par son identifiant"},
	"the memory of %s is saved to disk (managed save) and belongs to the disks as they are; start it or drop the saved memory first (virsh managedsave-remove)": {
		English: "the memory of %s is saved on its host and belongs to the disks as they are; start the VPS first",
		French:  "la mémoire de %s est enregistrée sur son hôte et correspond aux disques tels qu'ils sont ; démarrez d'abord le VPS",
	},
	"%[1]s has %[2]d libvirt snapshots of its own that would be lost; delete them first (virsh snapshot-list %[1]s)": {
		English: "the host has %[2]d other snapshots of %[1]s that would be lost; only its operator can delete them", French: "l'hôte a %[2]d autres snapshots de %[1]s, qui seraient perdus ; seul son opérateur peut les supprimer"},
	"%s is not persistent any more: there is no definition that could name its merged disks; define it again (virsh define)": {
		English: "%s is not persistent any more; only the operator of its host can put that right",
		French:  "%s n'est plus persistant ; seul l'opérateur de son hôte peut y remédier",
	},

	// Disks that a snapshot leaves out, or cannot be made of.
	"cannot take a snapshot of %s: %s":          {French: "impossible de créer un snapshot de %s : %s"},
	"cannot take a snapshot of %s: disk %s: %s": {French: "impossible de créer un snapshot de %s : disque %s : %s"},
	"disk %s: %s":         {French: "disque %s : %s"},
	"left out: a %s":      {French: "laissé de côté : %s"},
	"left out: read-only": {French: "laissé de côté : en lecture seule"},
	"left out: its definition says snapshot='no'": {
		English: "left out of snapshots by its definition",
		French:  "laissé de côté : sa définition l'exclut des snapshots",
	},
	"device type %s is not supported": {
		French: "le type de périphérique %s n'est pas pris en charge",
	},
	"the disk is shareable: another VPS may write to it": {
		French: "le disque est partageable : un autre VPS peut y écrire",
	},
	"the disk is transient: its changes are thrown away at power-off": {
		French: "le disque est transitoire : ses modifications sont perdues à l'arrêt",
	},
	"the disk is encrypted": {French: "le disque est chiffré"},
	"the disk is of type %s, only image files are supported": {
		French: "le disque est de type %s ; seuls les fichiers image sont pris en charge",
	},
	"the disk is a slice of a file": {French: "le disque est une tranche de fichier"},
	"the disk has the format %s, only qcow2 and raw are supported": {
		French: "le disque a le format %s ; seuls qcow2 et raw sont pris en charge",
	},
	"the disk has no image file": {French: "le disque n'a pas de fichier image"},
	"the VPS is not persistent, its definition is gone at power-off": {
		French: "le VPS n'est pas persistant : sa définition disparaît à l'arrêt",
	},
	"the guest put itself to sleep; wake it up first": {
		French: "le système invité s'est mis en veille ; réveillez-le d'abord",
	},
	"the VPS has an emulated TPM, whose state a snapshot would not hold": {
		French: "le VPS a un TPM émulé, dont un snapshot ne contiendrait pas l'état",
	},
	"the VPS keeps its UEFI variables elsewhere than in a local file": {
		French: "le VPS garde ses variables UEFI ailleurs que dans un fichier local",
	},
	"it has %d libvirt snapshots of its own; delete them first (virsh snapshot-list)": {
		English: "the host has %d other snapshots of it; only its operator can delete them", French: "l'hôte détient %d autres snapshots de ce VPS ; seul son opérateur peut les supprimer"},
	"it has %d libvirt checkpoints, which a restore would make void (virsh checkpoint-list)": {
		English: "the host has %d checkpoints of it, which a restore would make void", French: "l'hôte détient %d points de contrôle de ce VPS, qu'une restauration rendrait caducs"},
	"its memory is saved to disk (managed save); start it or drop the saved memory first (virsh managedsave-remove)": {
		English: "its memory is saved on its host; start it first", French: "sa mémoire est enregistrée sur son hôte ; démarrez-le d'abord"},
	"it has no disk that a snapshot would cover": {French: "il n'a pas de disque que couvrirait un snapshot"},
	"the disk is of type file, but there lies %s": {
		French: "le disque est de type file, mais il s'y trouve : %s",
	},
	"a block device":     {French: "un périphérique bloc"},
	"a character device": {French: "un périphérique caractère"},
	"a named pipe":       {French: "un tube nommé"},
	"a socket":           {French: "un socket"},
	"a directory":        {French: "un répertoire"},
	"no file":            {French: "pas de fichier"},
	"its image cannot be read as %s": {
		French: "son image ne peut pas être lue comme %s",
	},
	"a template cannot be read": {French: "un fichier de base ne peut pas être lu"},
	"a template is encrypted or keeps its data in another file": {
		French: "un fichier de base est chiffré ou garde ses données dans un autre fichier",
	},
	"its template is not a plain local file": {
		French: "son fichier de base n'est pas un simple fichier local",
	},
	"its template has the format %s, only a stated qcow2 or raw is supported": {
		French: "son fichier de base a le format %s ; seuls qcow2 et raw, indiqués, sont pris en charge",
	},
	"its template is not a regular file": {French: "son fichier de base n'est pas un fichier ordinaire"},
	"its template belongs to another VPS or to another disk": {
		French: "son fichier de base appartient à un autre VPS ou à un autre disque",
	},
	"its template does not lie in a directory for templates": {
		French: "son fichier de base ne se trouve pas dans un répertoire de modèles",
	},
	"its chain of templates is longer than %d": {
		French: "sa chaîne de fichiers de base compte plus de %d fichiers",
	},
	"its image names another template than the definition of the VPS": {
		French: "son image nomme un autre fichier de base que la définition du VPS",
	},
	"the image is encrypted": {French: "l'image est chiffrée"},
	"the image keeps its data in another file (data_file)": {
		French: "l'image garde ses données dans un autre fichier (data_file)",
	},
	"the image holds %d internal snapshots (qemu-img snapshot -l)": {
		English: "the image holds %d internal snapshots", French: "l'image contient %d snapshots internes"},
	"the image holds %d persistent bitmaps": {French: "l'image contient %d bitmaps persistants"},
	"the image is marked corrupt (qemu-img check)": {
		English: "the image is marked corrupt",
		French:  "l'image est marquée comme corrompue",
	},
	"its image was not closed by who last wrote to it (dirty flag)": {
		English: "its image was not closed by who last wrote to it", French: "son image n'a pas été fermée par celui qui y a écrit en dernier"},
	"start the VPS and shut it down again, which repairs the image (or qemu-img check -r all)": {
		English: "start the VPS and shut it down again, which repairs the image", French: "démarrez le VPS puis arrêtez-le, ce qui répare l'image"},
	"the image is %d bytes, the disk %d": {French: "l'image compte %d octets, le disque %d"},
	"cannot restore %s: %s":              {French: "impossible de restaurer %s : %s"},
	"its file system cannot exchange two files in one act, which a restore needs": {
		French: "son système de fichiers ne sait pas échanger deux fichiers d'un seul coup, ce qu'exige une restauration",
	},
	"its UEFI variables lie on a file system that cannot exchange two files in one act, which a restore needs": {
		French: "ses variables UEFI sont sur un système de fichiers qui ne sait pas échanger deux fichiers d'un seul coup, " +
			"ce qu'exige une restauration",
	},
	"it could not be started again afterwards":    {French: "il ne pourrait pas être redémarré ensuite"},
	"another VPS of this host uses its image too": {French: "un autre VPS de cet hôte utilise aussi son image"},

	// Downloads.
	"there is nothing to download here": {French: "il n'y a rien à télécharger ici"},
	"the link may be over, or its snapshot deleted; ask for another one": {
		French: "le lien a peut-être expiré, ou son snapshot a été supprimé ; demandez-en un autre",
	},
	"%s has no such link":                     {French: "%s n'a pas ce lien"},
	"the snapshot of %s has %d links already": {French: "le snapshot de %s a déjà %d liens"},
	"revoke those that are no longer needed: vpssnap downloads list, and revoke": {
		English: "revoke those that are no longer needed", French: "révoquez ceux dont vous n'avez plus besoin"},
	"the snapshot of %s has %d disks":   {French: "le snapshot de %s a %d disques"},
	"the snapshot of %s has no disk %s": {French: "le snapshot de %s n'a pas de disque %s"},
	"choose one of %s":                  {French: "choisissez parmi %s"},
	"disk %s of %s cannot be downloaded as qcow2": {
		French: "le disque %s de %s ne peut pas être téléchargé en qcow2",
	},
	"ask for raw": {French: "demandez raw"},
	"disk %s of the snapshot of %s cannot be read: %s": {
		English: "disk %[1]s of the snapshot of %[2]s cannot be read",
		French:  "le disque %[1]s du snapshot de %[2]s ne peut pas être lu",
	},
	"disk %s of the snapshot of %s cannot be read just now": {
		French: "le disque %s du snapshot de %s ne peut pas être lu pour le moment",
	},
	"%d downloads of this VPS run already": {French: "%d téléchargements de ce VPS sont déjà en cours"},
	"as many downloads run on this host as may": {
		French: "cet hôte a déjà autant de téléchargements en cours qu'il peut en avoir",
	},
	"wait until one has ended": {French: "attendez que l'un d'eux se termine"},

	// Our own faults.
	"something went wrong inside vpssnapd; its log says what": {
		English: "something went wrong on the host",
		French:  "une erreur s'est produite sur l'hôte",
	},
	"give the request id to the operator of this host": {
		French: "donnez l'identifiant de la demande (request_id) à l'opérateur de cet hôte",
	},
}
