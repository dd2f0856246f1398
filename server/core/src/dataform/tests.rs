use proptest::prelude::*;
use waystation_xml::Element;

use super::*;
use crate::error::ErrorType;
use crate::jid::Jid;

fn element(xml: &str) -> Element {
    Element::parse(xml.as_bytes(), "").unwrap()
}

fn parse(inner: &str) -> Result<DataForm, FormError> {
    DataForm::parse(&element(&format!("<x xmlns='jabber:x:data' type='submit'>{inner}</x>")))
}

fn field(var: &str, values: &[&str]) -> Field {
    Field { var: Some(var.to_owned()), ..Field::default() }.with_values(values.iter().copied())
}

#[test]
fn every_kind_has_a_name_that_reads_back() {
    for (kind, name) in FormKind::ALL {
        assert_eq!(kind.as_str(), name);
        assert_eq!(from_name(&FormKind::ALL, name), Some(kind));
    }
    for (kind, name) in FieldKind::ALL {
        assert_eq!(kind.as_str(), name);
        assert_eq!(from_name(&FieldKind::ALL, name), Some(kind));
    }
}

#[test]
fn a_form_is_written_as_xep_0004_shows() {
    let form = DataForm::new(FormKind::Form)
        .with_title("Bot Configuration")
        .with_instructions("Fill out this form to configure your new bot!")
        .with_form_type("jabber:bot")
        .with_field(Field { kind: Some(FieldKind::Fixed), ..Field::default() }.with_value("Section 1"))
        .with_field(
            Field::new(FieldKind::TextSingle, "botname").with_label("The name of your bot").required(),
        )
        .with_field(
            Field::new(FieldKind::ListSingle, "maxsubs")
                .with_desc("How many?")
                .with_value("20")
                .with_option("10", "Ten")
                .with_option("20", "Twenty")
                .with_datatype(Datatype::Integer { min: Some(0), max: None })
                .open(),
        );
    let expected = "<x xmlns='jabber:x:data' type='form'>\
        <title>Bot Configuration</title>\
        <instructions>Fill out this form to configure your new bot!</instructions>\
        <field var='FORM_TYPE' type='hidden'><value>jabber:bot</value></field>\
        <field type='fixed'><value>Section 1</value></field>\
        <field var='botname' type='text-single' label='The name of your bot'><required/></field>\
        <field var='maxsubs' type='list-single'><desc>How many?</desc>\
        <validate xmlns='http://jabber.org/protocol/xdata-validate' datatype='xs:integer'><range min='0'/></validate>\
        <value>20</value><option label='Ten'><value>10</value></option>\
        <option label='Twenty'><value>20</value></option></field></x>";
    assert_eq!(form.to_element(), element(expected));
}

#[test]
fn validation_rules_are_written_as_xep_0122_shows() {
    let written = |datatype, open| {
        let form = DataForm::new(FormKind::Form).with_field(Field { datatype, open, ..field("a", &[]) });
        let written = form.to_element();
        written.child("field", NS_DATA_FORMS).unwrap().child("validate", NS_VALIDATE).cloned()
    };
    let ns = "xmlns='http://jabber.org/protocol/xdata-validate'";
    for (datatype, open, expected) in [
        (Datatype::String, true, "<validate XMLNS datatype='xs:string'><open/></validate>"),
        (Datatype::Date, false, "<validate XMLNS datatype='xs:date'><basic/></validate>"),
        (Datatype::Time, false, "<validate XMLNS datatype='xs:time'><basic/></validate>"),
        (Datatype::DateTime, true, "<validate XMLNS datatype='xs:dateTime'><open/></validate>"),
        (
            Datatype::Integer { min: Some(-1), max: Some(5) },
            false,
            "<validate XMLNS datatype='xs:integer'><range min='-1' max='5'/></validate>",
        ),
        (
            Datatype::Integer { min: None, max: None },
            false,
            "<validate XMLNS datatype='xs:integer'><basic/></validate>",
        ),
    ] {
        assert_eq!(written(datatype, open), Some(element(&expected.replace("XMLNS", ns))));
    }
    assert_eq!(written(Datatype::String, false), None);
}

#[test]
fn a_table_of_results_is_read_and_written() {
    let xml = "<x xmlns='jabber:x:data' type='result'>\
        <reported><field var='name' type='text-single' label='Name'/></reported>\
        <item><field var='name'><value>Juliet</value></field></item>\
        <item><field var='name'><value>Romeo</value></field></item></x>";
    let form = DataForm::parse(&element(xml)).unwrap();
    assert_eq!(form.reported, [Field::new(FieldKind::TextSingle, "name").with_label("Name")]);
    assert_eq!(form.items, [[field("name", &["Juliet"])], [field("name", &["Romeo"])]]);
    assert_eq!(form.to_element(), element(xml));
}

#[test]
fn malformed_forms_are_bad_requests() {
    for xml in [
        "<x xmlns='jabber:x:data'/>",
        "<x xmlns='jabber:x:data' type='error'/>",
        "<x xmlns='jabber:x:oob' type='form'/>",
        "<y xmlns='jabber:x:data' type='form'/>",
        "<x xmlns='jabber:x:data' type='submit'><field><value>a</value></field></x>",
        "<x xmlns='jabber:x:data' type='submit'><field var=''/></x>",
        "<x xmlns='jabber:x:data' type='submit'><field var='a'/><field var='a'/></x>",
        "<x xmlns='jabber:x:data' type='form'><field var='a'><option/></field></x>",
        "<x xmlns='jabber:x:data' type='form'><field var='a'><option><value/><value/></option></field></x>",
    ] {
        let error = DataForm::parse(&element(xml)).unwrap_err();
        assert!(matches!(error, FormError::Malformed(_)), "{xml}");
        assert_eq!(StanzaError::from(error).condition, Condition::BadRequest);
    }
}

#[test]
fn what_is_not_understood_is_ignored() {
    let form = parse(
        "<y/><field xmlns='urn:x' var='b'/>\
        <field var='a' type='x-unknown'><value>1</value><v/><media xmlns='urn:xmpp:media-element'/></field>",
    );
    assert_eq!(form.unwrap().fields, [Field::new(FieldKind::TextSingle, "a").with_value("1")]);
}

#[test]
fn m18_forms_with_too_many_fields_or_values_are_not_acceptable() {
    let fields = |count: usize| (0..count).map(|i| format!("<field var='f{i}'/>")).collect::<String>();
    assert_eq!(parse(&fields(MAX_FIELDS)).unwrap().fields.len(), MAX_FIELDS);
    assert_eq!(parse(&fields(MAX_FIELDS + 1)), Err(FormError::TooLarge));
    let values = |count| format!("<field var='a'>{}</field>", "<value/>".repeat(count));
    assert_eq!(parse(&values(MAX_VALUES)).unwrap().values("a").len(), MAX_VALUES);
    assert_eq!(parse(&values(MAX_VALUES + 1)), Err(FormError::TooLarge));
    let options = format!("<field var='a'>{}</field>", "<option><value/></option>".repeat(MAX_VALUES + 1));
    assert_eq!(parse(&options), Err(FormError::TooLarge));
    assert_eq!(parse(&"<item/>".repeat(MAX_FIELDS + 1)), Err(FormError::TooLarge));
    assert_eq!(StanzaError::from(FormError::TooLarge).condition, Condition::NotAcceptable);
}

#[test]
fn form_type_counts_as_xep_0068_3_says() {
    let form_type = |form: &str, kind: &str| {
        let xml = format!(
            "<x xmlns='jabber:x:data' type='{form}'><field var='FORM_TYPE' {kind}><value>urn:x</value></field></x>"
        );
        DataForm::parse(&element(&xml)).unwrap().form_type().map(str::to_owned)
    };
    let urn = Some("urn:x".to_owned());
    assert_eq!(form_type("form", "type='hidden'"), urn);
    assert_eq!(form_type("result", "type='hidden'"), urn);
    assert_eq!(form_type("submit", ""), urn);
    assert_eq!(form_type("submit", "type='hidden'"), urn);
    assert_eq!(form_type("form", "type='text-single'"), None);
    assert_eq!(form_type("result", ""), None);
    assert_eq!(DataForm::new(FormKind::Submit).form_type(), None);
}

fn offered() -> DataForm {
    DataForm::new(FormKind::Form)
        .with_form_type("urn:x")
        .with_field(Field::new(FieldKind::TextSingle, "name").required())
        .with_field(Field::new(FieldKind::Boolean, "open"))
        .with_field(Field::new(FieldKind::JidSingle, "owner"))
        .with_field(Field::new(FieldKind::JidMulti, "admins"))
        .with_field(Field::new(FieldKind::ListSingle, "whois").with_option("a", "A").with_option("b", "B"))
        .with_field(Field::new(FieldKind::ListMulti, "roles").with_option("a", "A").with_option("b", "B"))
        .with_field(Field::new(FieldKind::ListSingle, "max").with_option("10", "Ten").open())
        .with_field(
            Field::new(FieldKind::TextSingle, "age")
                .with_datatype(Datatype::Integer { min: Some(0), max: Some(150) }),
        )
        .with_field(Field::new(FieldKind::TextSingle, "born").with_datatype(Datatype::Date))
        .with_field(Field::new(FieldKind::TextSingle, "noon").with_datatype(Datatype::Time))
        .with_field(Field::new(FieldKind::TextSingle, "now").with_datatype(Datatype::DateTime))
        .with_field(Field::new(FieldKind::TextMulti, "text"))
}

fn submit(fields: &[(&str, &[&str])]) -> DataForm {
    fields
        .iter()
        .fold(DataForm::new(FormKind::Submit), |form, (var, values)| form.with_field(field(var, values)))
}

#[test]
fn submissions_are_checked_against_the_form() {
    let offered = offered();
    let check = |var, values| offered.check(&submit(&[("name", &["x"]), (var, values)]));
    for (var, values) in [
        ("open", &["1"][..]),
        ("open", &["false"]),
        ("open", &[""]),
        ("open", &[]),
        ("owner", &["Romeo@Montague.example"]),
        ("admins", &["a@b", "c@d"]),
        ("whois", &["b"]),
        ("roles", &["a", "b"]),
        ("max", &["11"]),
        ("age", &["0"]),
        ("age", &["150"]),
        ("born", &["1600-01-31"]),
        ("noon", &["12:00:00"]),
        ("now", &["2002-09-10T23:08:25Z"]),
        ("text", &["one", "", "three"]),
        ("unknown", &["anything"]),
        (FORM_TYPE, &["urn:x"]),
    ] {
        assert_eq!(check(var, values), Ok(()), "{var} {values:?}");
    }
    for (var, values) in [
        ("open", &["yes"][..]),
        ("open", &["1", "0"]),
        ("owner", &["@"]),
        ("owner", &["a@b", "c@d"]),
        ("admins", &["a@b", "@"]),
        ("whois", &["c"]),
        ("roles", &["a", "c"]),
        ("max", &["10", "11"]),
        ("age", &["-1"]),
        ("age", &["151"]),
        ("age", &["9223372036854775808"]),
        ("age", &["1e1"]),
        ("born", &["1600-02-31"]),
        ("noon", &["12"]),
        ("now", &["2002-09-10"]),
    ] {
        let error = check(var, values).unwrap_err();
        assert!(matches!(&error, FormError::Invalid(name, _) if name == var), "{var} {values:?}: {error}");
        let error = StanzaError::from(error);
        assert_eq!((error.condition, error.kind), (Condition::NotAcceptable, ErrorType::Modify));
    }
}

#[test]
fn required_fields_must_be_filled_in() {
    let missing = Err(FormError::Missing("name".into()));
    assert_eq!(offered().check(&submit(&[])), missing);
    assert_eq!(offered().check(&submit(&[("name", &[])])), missing);
    assert_eq!(offered().check(&submit(&[("name", &[""])])), missing);
}

#[test]
fn other_forms_and_kinds_are_no_submission() {
    let other = submit(&[("name", &["x"]), (FORM_TYPE, &["urn:y"])]);
    assert!(matches!(offered().check(&other), Err(FormError::Malformed(_))));
    let cancelled = DataForm { kind: FormKind::Cancel, ..submit(&[("name", &["x"])]) };
    assert!(matches!(offered().check(&cancelled), Err(FormError::Malformed(_))));
}

#[test]
fn values_are_read_by_type() {
    let form = submit(&[
        ("b", &["true"]),
        ("n", &["-5"]),
        ("j", &["A@b", "a@b", "", "c@d"]),
        ("e", &[""]),
        ("x", &["?@?"]),
    ]);
    let jid = |s| Jid::parse(s).unwrap();
    assert_eq!(form.boolean("b"), Ok(Some(true)));
    assert_eq!(form.boolean("e"), Ok(None));
    assert_eq!(form.boolean("none"), Ok(None));
    assert!(form.boolean("n").is_err());
    assert_eq!(form.integer("n"), Ok(Some(-5)));
    assert!(form.integer("b").is_err());
    assert_eq!(form.jid("j"), Ok(Some(jid("a@b"))));
    assert_eq!(form.jids("j"), Ok(vec![jid("a@b"), jid("c@d")]));
    assert!(form.jid("e").unwrap().is_none());
    assert!(form.jids("x").is_err() && form.jid("x").is_err());
}

fn any_field() -> impl Strategy<Value = Field> {
    let kind = proptest::option::of(proptest::sample::select(FieldKind::ALL.map(|(kind, _)| kind).to_vec()));
    let text = || "[ -~é]{0,5}";
    let options = proptest::collection::vec((proptest::option::of(text()), text()), 0..3);
    (kind, proptest::option::of(text()), proptest::option::of(text()), any::<bool>(), options).prop_flat_map(
        move |(kind, label, desc, required, options)| {
            proptest::collection::vec(text(), 0..3).prop_map(move |values| Field {
                var: None,
                kind,
                label: label.clone(),
                desc: desc.clone(),
                required,
                values,
                options: options
                    .iter()
                    .map(|(label, value)| FieldOption { label: label.clone(), value: value.clone() })
                    .collect(),
                ..Field::default()
            })
        },
    )
}

proptest! {
    #[test]
    fn forms_read_back_as_written(
        kind in proptest::sample::select(FormKind::ALL.map(|(kind, _)| kind).to_vec()),
        title in proptest::option::of("[ -~]{0,8}"),
        fields in proptest::collection::vec(any_field(), 0..6),
    ) {
        let mut form = DataForm::new(kind);
        form.title = title;
        form.fields = fields;
        for (index, field) in form.fields.iter_mut().enumerate() {
            field.var = Some(format!("field {index}"));
        }
        let written = form.to_element().to_vec("");
        prop_assert_eq!(DataForm::parse(&Element::parse(&written, "").unwrap()), Ok(form));
    }

    #[test]
    fn no_element_panics(
        tags in proptest::collection::vec((0..9usize, "[a-z#:<-]{0,6}", "[a-z_-]{0,8}"), 0..24),
    ) {
        let names = ["x", "field", "value", "option", "item", "reported", "title", "required", "desc"];
        let mut tree = Element::new("x", NS_DATA_FORMS).with_attr("type", "form");
        for (index, var, kind) in tags {
            let child = Element::new(names[index], NS_DATA_FORMS).with_attr("var", var).with_attr("type", kind);
            tree = if index % 2 == 0 { tree.with_child(child) } else { child.with_child(tree) };
            if let Ok(form) = DataForm::parse(&tree) {
                let _ = (form.form_type(), form.check(&form), offered().check(&form));
            }
        }
    }
}
